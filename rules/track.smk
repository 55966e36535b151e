"""Copy the curves to MLflow, TensorBoard or W&B. No other job depends on it, and its failure affects no training.

REQUIRED INPUTS: the curves of every run of the plan, and of the study
OUTPUTS: results/{experiment}/tracking.json; the copies are in tracking/ (docs/tracking.md)
"""


rule track:
    input:
        plan="results/{experiment}/plan.json",
        study=study_results,
        history=of_each_run("history.csv"),
    output:
        copied="results/{experiment}/tracking.json",
    log:
        "logs/track/{experiment}.log",
    benchmark:
        "benchmarks/track/{experiment}.tsv"
    retries: 0  # a server that does not answer would be waited for again, and the next pipeline copies what is missing
    threads: 1
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        stage=plans.STAGES["track"],
        settings=plans.section_digest(experiment, "tracking"),
    shell:
        "exec python -m workflow_lib track --output {output.copied:q} >> {log:q} 2>&1"


if experiment.tracking.to:
    TARGETS.append("results/{experiment}/tracking.json")
