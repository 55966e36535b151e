"""Put the best model of the experiment into a registry, and promote it if it is better than the one there.

REQUIRED INPUTS: the report's table of runs, and the results of every run
OUTPUTS: results/{experiment}/registered.json, and the same as a page, registered.html; the version is in registry/ (docs/registry.md)
"""


rule register:
    input:
        runs="results/{experiment}/runs.csv",
        model=of_each_run("model.safetensors"),
        predictions=of_each_run("predictions.csv"),
        export=of_each_run("export.json"),
        onnx=of_each_run("model.onnx"),
    output:
        registered="results/{experiment}/registered.json",
        page="results/{experiment}/registered.html",
    log:
        "logs/register/{experiment}.log",
    benchmark:
        "benchmarks/register/{experiment}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        stage=plans.STAGES["register"],
        settings=plans.section_digest(experiment, "registry"),
        results=subpath(output.registered, parent=True),
    shell:
        "exec python -m workflow_lib register --results {params.results:q} --output {output.registered:q}"
        " >> {log:q} 2>&1"


if experiment.registry:
    TARGETS.append("results/{experiment}/registered.json")
