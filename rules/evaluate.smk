"""Evaluate a trained model on the test split.

REQUIRED INPUTS: the trained model, the data manifest
OUTPUTS: results/{experiment}/runs/{run}/evaluation.json, predictions.csv
"""


rule evaluate:
    input:
        unpack(run_inputs),
        train="results/{experiment}/runs/{run}/train.json",
        model="results/{experiment}/runs/{run}/model.safetensors",
    output:
        evaluation=report(
            "results/{experiment}/runs/{run}/evaluation.json",
            caption="../report/evaluation.rst",
            category="Evaluation",
            subcategory="{run}",
        ),
        predictions="results/{experiment}/runs/{run}/predictions.csv",
    log:
        "logs/evaluate/{experiment}/{run}.log",
    benchmark:
        "benchmarks/evaluate/{experiment}/{run}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        stage=plans.STAGES["evaluate"],
        settings=plans.section_digest(experiment, "evaluate"),
        run=run_reference,
    shell:
        "exec python -m workflow_lib evaluate --run {params.run:q} --data {input.data:q} --model {input.model:q}"
        " --output {output.evaluation:q} >> {log:q} 2>&1"


TARGETS += [
    "results/{experiment}/runs/{run}/evaluation.json",
    "results/{experiment}/runs/{run}/predictions.csv",
]
