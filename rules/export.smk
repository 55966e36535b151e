"""Export a trained model to ONNX, and compare it with torch on test samples.

REQUIRED INPUTS: the trained model, its evaluation, the data manifest
OUTPUTS: results/{experiment}/runs/{run}/model.onnx, export.json
"""


rule export:
    input:
        unpack(run_inputs),
        model="results/{experiment}/runs/{run}/model.safetensors",
        evaluation="results/{experiment}/runs/{run}/evaluation.json",
    output:
        export=report(
            "results/{experiment}/runs/{run}/export.json",
            caption="../report/export.rst",
            category="Export",
            subcategory="{run}",
        ),
        onnx="results/{experiment}/runs/{run}/model.onnx",
    log:
        "logs/export/{experiment}/{run}.log",
    benchmark:
        "benchmarks/export/{experiment}/{run}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        stage=plans.STAGES["export"],
        settings=plans.section_digest(experiment, "export"),
        run=run_reference,
    shell:
        "exec python -m workflow_lib export --run {params.run:q} --data {input.data:q} --model {input.model:q}"
        " --evaluation {input.evaluation:q} --output {output.export:q} >> {log:q} 2>&1"


TARGETS += [
    "results/{experiment}/runs/{run}/export.json",
    "results/{experiment}/runs/{run}/model.onnx",
]
