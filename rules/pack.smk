"""Train many small runs, or the trials of a study, in one job, each in a fork of a warm process (docs/workflow.md).

There are packs if `runtime.pack` asks for them. The job writes to work/; the rules train, trial, evaluate and export hand
its results out. A training that fails in a pack is left to its own job.

REQUIRED INPUTS: the data manifests of the runs
OUTPUTS: results/{experiment}/packs/{pack}.json (temporary)
"""


rule pack:
    input:
        data=pack_data,
    output:
        pack=temp("results/{experiment}/packs/{pack}.json"),
    log:
        "logs/pack/{experiment}/{pack}.log",
    benchmark:
        "benchmarks/pack/{experiment}/{pack}.tsv"
    priority: 5  # before single trainings take the cores
    threads: pack_threads
    resources:
        **({"gpu": training_gpus} if IS_LOCAL else {}),
        mem_mb=4000,
        runtime=1440,
        on_stop="retry",
    params:
        stage=plans.STAGES["train"],
    shell:
        "exec python -m workflow_lib pack --pack {wildcards.pack:q} --threads {threads} --output {output.pack:q}"
        " --deadline-minutes {resources.runtime} --on-stop {resources.on_stop} >> {log:q} 2>&1"
