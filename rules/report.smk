"""Write the report, a page on all runs, and a table of the runs.

REQUIRED INPUTS: the plan, and the results of every run of the plan and of the study
OUTPUTS: results/{experiment}/report.html, runs.csv, configurations.csv, and runs.xlsx if report.excel is set
"""


rule report:
    input:
        plan="results/{experiment}/plan.json",
        study=study_results,
        train=of_each_run("train.json"),
        history=of_each_run("history.csv"),
        evaluation=of_each_run("evaluation.json"),
        predictions=of_each_run("predictions.csv"),
        export=of_each_run("export.json"),
    output:
        **workbook_of(experiment),
        report=report(
            "results/{experiment}/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
        runs=report(
            "results/{experiment}/runs.csv",
            caption="../report/runs.rst",
            category="Report",
        ),
        configurations=report(
            "results/{experiment}/configurations.csv",
            caption="../report/configurations.rst",
            category="Report",
        ),
    log:
        "logs/report/{experiment}.log",
    benchmark:
        "benchmarks/report/{experiment}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        stage=plans.STAGES["report"],
        settings=plans.section_digest(experiment, "report"),
        results=subpath(output.report, parent=True),
    shell:
        "exec python -m workflow_lib report --results {params.results:q} --plan {input.plan:q}"
        " --output {output.report:q} >> {log:q} 2>&1"


TARGETS += [
    "results/{experiment}/report.html",
    "results/{experiment}/runs.csv",
    "results/{experiment}/configurations.csv",
]
