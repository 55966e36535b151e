"""Tell people when the experiment ends, fails or stalls, if `notify:` asks for it (docs/notifications.md).

No rule, and no input of one: what is told is no part of a result.
"""

notifier = None
if experiment.notify and workflow.is_main_process and not is_dry_run():
    from workflow_lib import notify

    notifier = notify.Notifier(experiment.notify, Path(RESULTS), WORK, environment=os.environ, say=say)


def finished_runs():
    """Return the runs of the experiment if it has all its outputs, else None."""
    return reported_runs() if all(Path(path).exists() for path in targets(None)) else None


def running_trainings():
    """Yield references to the runs that have a job now."""
    running = list(workflow.scheduler.running)  # in one step: the scheduler changes it meanwhile
    for job in (inner for job in running for inner in (job.jobs if job.is_group() else [job])):
        values = job.wildcards_dict
        if "number" in values:
            yield f"{RESULTS}/tune/{values['study']}/suggest-{values['number']}.json"
        elif "run" in values:
            yield tuned_pointer() if values["run"] == "tuned" else values["run"]
        elif "pack" in values:
            yield from (run for run, _ in packs()[values["pack"]].runs)


def tell_end():
    """Tell that the experiment has ended, unless only a part of it was requested."""
    if notifier and (runs_with_results := finished_runs()):
        notifier.end(runs_with_results)


def tell_failures():
    """Tell which jobs have failed."""
    if notifier:
        failures = [
            notify.Failure(
                name_of(job),
                snakefile.last_line(next(map(Path, job.log), None)),
                str(job.params.get("code", "")),
            )
            for job in workflow.scheduler.failed
        ]
        notifier.fail(failures, frozen.stem, resume_command())
        if failures:
            recorder.record("told")


if notifier:
    notifier.resume(finished_runs)
