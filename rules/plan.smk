"""Write the plan: the runs of the experiment, what differs between them, and its study.

Each run is frozen in work/runs/*/config.json, so that an edit of the YAML does not change queued jobs; `onstart` in the
Snakefile freezes them before the first job of any other target.

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
    priority: 20  # before trainings take all cores: `everstep status` reads the names of the runs from the plan
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        stage=plans.STAGES["plan"],
        digest=lambda wildcards: plans.plan_digest(experiment, tuple(runs().values())),
    shell:
        "exec python -m workflow_lib freeze --output {output.plan:q} >> {log:q} 2>&1"
