"""Everstep: training runs that never lose a step.

    plan ──► preprocess ──► train ──► evaluate ──► export ──► report
                              ▲
             tune: suggest[n] ──► trial[n] ──► best

    track, where tracking.to asks for it, copies the curves to other tools when the trainings are over.

Each phase is one file in rules/. `experiment` and the few functions they share stand in rules/common.smk.
"""

from snakemake.utils import min_version

min_version("9.27")


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/plan.smk"
include: "rules/preprocess.smk"
include: "rules/train.smk"
include: "rules/tune.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/report.smk"
include: "rules/track.smk"


localrules:
    all,
    plan,
    suggest,
    best,
    report,
    track,


rule all:
    default_target: True
    input:
        targets,


# Not an input of the jobs, not even an ancient one: when a job must run, Snakemake asks nothing of those below it, and then
# lets them off where all that connects them is ancient. A new run would wait for the next `snakemake`.
onstart:
    check_requests()
    take_results()
    print(
        "everstep: to look on from another terminal: everstep status; the jobs' logs are in logs/",
        file=sys.stderr,
    )
    for run in runs().values():
        plans.freeze(run.config, WORK, run.digest)
    if experiment.tune:
        plans.freeze_study(experiment, Path(tuned_pointer()).parent, WORK)


onsuccess:
    tell_the_result()


onerror:
    tell_what_failed()
