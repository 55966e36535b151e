"""Everstep: training runs that never lose a step.

    plan ──► preprocess ──► train ──► evaluate ──► export ──► report
                              ▲
             tune: suggest[n] ──► trial[n] ──► best

    pack trains many small runs in one job before their own jobs hand out the results, if runtime.pack asks for it.

    track copies the curves to other tools after the trainings, if tracking.to names any.

    register puts the best model into a registry, if there is a section `registry`.

    notify tells people about the end and failures, if there is a section `notify`; it has no rule.

Each phase is one file in rules/. The experiment and the functions that they share are in rules/common*.smk; what happens
before the first job and after the last one is in rules/handlers.smk.
"""

from snakemake.utils import min_version

min_version("9.27")


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/common_study.smk"
include: "rules/common_packs.smk"
include: "rules/handlers.smk"
include: "rules/plan.smk"
include: "rules/preprocess.smk"
include: "rules/pack.smk"
include: "rules/train.smk"
include: "rules/tune.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/report.smk"
include: "rules/track.smk"
include: "rules/register.smk"
include: "rules/notify.smk"


localrules:
    all,
    plan,
    suggest,
    best,
    report,
    track,
    register,


rule all:
    default_target: True
    input:
        targets,


# Runs are frozen here, because the plan cannot be an input of the jobs, not even an ancient one. When a job must run,
# Snakemake does not check the jobs below it, and skips them if they are connected by ancient inputs only: a new run would
# wait for the next `snakemake`.
onstart:
    check_requests()
    take_results()
    take_snapshot()
    take_over_jobs()
    record_start()
    workflow.scheduler.job_rate_limiter = snakefile.rate_limit(workflow.scheduler.job_rate_limiter)
    print(
        "everstep: to see the progress from another terminal, run: everstep status. The logs of the jobs are in logs/",
        file=sys.stderr,
    )
    snakefile.freeze_plan(experiment, tuple(runs().values()), WORK, Path(RESULTS))
    for pack in packs().values():
        plans.freeze_pack(pack, WORK)
    if packing.is_wanted(experiment) and (reason := no_packs()):
        say(f"runtime.pack: the runs are trained one by one, since {reason}")
    if experiment.tune:
        plans.freeze_study(experiment, Path(tuned_pointer()).parent, WORK)
    if notifier:
        notifier.begin(running_trainings)


onsuccess:
    remove_prepared()
    print_summary()
    tell_end()


onerror:
    remove_prepared()
    print_failures()
    tell_failures()
