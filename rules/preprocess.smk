"""Convert a data set to shards with checksums.

REQUIRED INPUTS: the files that the data set is read from
OUTPUTS: results/{experiment}/data/{data_id}.json (the manifest), work/data/*/
"""


rule preprocess:
    input:
        files=source_files,
    output:
        manifest="results/{experiment}/data/{data_id}.json",
    log:
        "logs/preprocess/{experiment}/{data_id}.log",
    benchmark:
        "benchmarks/preprocess/{experiment}/{data_id}.tsv"
    threads: 4
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        stage=plans.STAGES["preprocess"],
        files=source_state,
        code=source_code,
    shell:
        "exec python -m workflow_lib preprocess --data {wildcards.data_id:q} --threads {threads} --output {output.manifest:q} >> {log:q} 2>&1"
