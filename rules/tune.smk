"""Suggest trials, train each, and select the best.

Suggestion n depends on suggestion n - 1 and on the result of trial n - tune.window, so that up to tune.window trials run
at the same time, and the order in which they end does not matter (docs/tuning.md).

REQUIRED INPUTS: the data manifest
OUTPUTS: results/{experiment}/tune/{study}/suggest-*.json, trial-*.json, best.json
"""

STUDY = plans.study_id(experiment) if experiment.tune else "none"
TUNE = f"{RESULTS}/tune/{STUDY}"


wildcard_constraints:
    study=re.escape(STUDY),
    number=r"[0-9]{4}[0-9]*",


rule suggest:
    input:
        unpack(earlier_trials),
    output:
        suggestion="results/{experiment}/tune/{study}/suggest-{number}.json",
    log:
        "logs/suggest/{experiment}/{study}/{number}.log",
    benchmark:
        "benchmarks/suggest/{experiment}/{study}/{number}.tsv"
    priority: 10
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        stage=plans.STAGES["suggest"],
        folder=subpath(output.suggestion, parent=True),
    shell:
        "exec python -m workflow_lib suggest --number {wildcards.number} --tune-dir {params.folder:q}"
        " --output {output.suggestion:q} >> {log:q} 2>&1"


rule trial:
    input:
        unpack(trial_inputs),
    output:
        result="results/{experiment}/tune/{study}/trial-{number}.json",
    log:
        "logs/trial/{experiment}/{study}/{number}.log",
    benchmark:
        "benchmarks/trial/{experiment}/{study}/{number}.tsv"
    priority: 10
    threads: training_threads
    resources:
        **nodes(),
        gpu=training_gpus,
        mem_mb=2000,
        runtime=1440,
        on_stop="retry",
    params:
        stage=plans.STAGES["train"],
        code=study_code,
    shell:
        "exec python -m workflow_lib trial --suggestion {input.suggestion:q} --data {input.data:q}"
        " --output {output.result:q} --deadline-minutes {resources.runtime} --on-stop {resources.on_stop} >> {log:q} 2>&1"


rule best:
    input:
        results=lambda wildcards: [f"{TUNE}/trial-{n:04d}.json" for n in range(experiment.tune.trials)],
    output:
        best="results/{experiment}/tune/{study}/best.json",
    log:
        "logs/best/{experiment}/{study}.log",
    benchmark:
        "benchmarks/best/{experiment}/{study}.tsv"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        stage=plans.STAGES["suggest"],
        full_run=plans.run_digest(plans.base(experiment)),
        folder=subpath(output.best, parent=True),
    shell:
        "exec python -m workflow_lib best --tune-dir {params.folder:q} --output {output.best:q} >> {log:q} 2>&1"


if experiment.tune:
    TARGETS.append(f"{TUNE}/best.json")
