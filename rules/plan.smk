"""Say what the experiment stands for: its runs, what differs between them, its study.

Each run is frozen in work/runs/*/config.json, so that queued jobs outlive an edit of the YAML; so is it before the first
job of any target (see `onstart` in the Snakefile).

REQUIRED INPUTS: none
OUTPUTS: results/{experiment}/plan.json
"""


rule plan:
    output:
        plan="results/{experiment}/plan.json",
    log:
        "logs/plan/{experiment}.log",
    benchmark:
        "benchmarks/plan/{experiment}.tsv"
    priority: 20  # before trainings take every core: `everstep status` has the names of the runs from it
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        stage=plans.STAGES["plan"],
        digest=lambda wildcards: plans.plan_digest(experiment, tuple(runs().values())),
    shell:
        "exec python -m workflow_lib freeze --output {output.plan:q} >> {log:q} 2>&1"
