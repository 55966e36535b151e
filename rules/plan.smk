"""Freeze every run of the experiment, so that queued jobs outlive an edit of the YAML.

REQUIRED INPUTS: none
OUTPUTS: results/{experiment}/plan.json, work/runs/*/config.json
"""


rule plan:
    output:
        plan="results/{experiment}/plan.json",
    log:
        "logs/plan/{experiment}.log",
    benchmark:
        "benchmarks/plan/{experiment}.tsv"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        stage=plans.STAGES["plan"],
        digest=plans.plan_digest(experiment),
    shell:
        "exec python -m workflow_lib freeze --output {output.plan:q} >> {log:q} 2>&1"
