"""Train a run, or resume its training. Checkpoints are in work/, where Snakemake deletes nothing.

REQUIRED INPUTS: the data manifest; the result of the run that it starts from, if there is one; for the run `tuned`
also the result of the study
OUTPUTS: results/{experiment}/runs/{run}/train.json, model.safetensors, history.csv
"""


rule train:
    input:
        unpack(training_inputs),
    output:
        train="results/{experiment}/runs/{run}/train.json",
        model="results/{experiment}/runs/{run}/model.safetensors",
        history=report(
            "results/{experiment}/runs/{run}/history.csv",
            caption="../report/history.rst",
            category="Training",
            subcategory="{run}",
        ),
    log:
        "logs/train/{experiment}/{run}.log",
    benchmark:
        "benchmarks/train/{experiment}/{run}.tsv"
    threads: training_threads
    resources:
        **nodes(),
        gpu=training_gpus,
        mem_mb=2000,
        runtime=1440,
        on_stop="retry",
    params:
        stage=plans.STAGES["train"],
        code=run_code,
        run=run_reference,
    shell:
        "exec python -m workflow_lib train --run {params.run:q} --data {input.data:q} --output {output.train:q}"
        " --deadline-minutes {resources.runtime} --on-stop {resources.on_stop} >> {log:q} 2>&1"


TARGETS += [
    "results/{experiment}/runs/{run}/train.json",
    "results/{experiment}/runs/{run}/model.safetensors",
    "results/{experiment}/runs/{run}/history.csv",
]
