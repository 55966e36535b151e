"""The start and the end of a pipeline: functions that the handlers in the Snakefile call (`onstart`, `onerror`, ...)."""


def take_results():
    """Record that the results belong to the experiment file; exit if another file claimed them in the meantime."""
    try:
        if line := claims.acquire(results_layout.RESULTS, experiment.name, claim):
            say(line)
    except EverstepError as error:
        say(error, "error")
        raise SystemExit(error.exit_code)


def check_requests():
    """Exit before any job starts if the cluster, or this machine, can never provide what the jobs request."""
    if IS_LOCAL:
        check_gpus()
    if workflow.executor_plugin.name != "slurm":
        return
    alike = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            alike.setdefault(job.name, []).append(job)
    jobs = [
        (rule, len(found), dict(found[0].resources.items()), found[0].threads)
        for rule, found in alike.items()
    ]
    try:
        say(budget.check(budget.asked_by(jobs, experiment, sys.argv)))
    except EverstepError as error:
        say(f"nothing was submitted.\n{error}", "error")
        raise SystemExit(error.exit_code)


def take_over_jobs():
    """Go on with the jobs of a killed Snakemake that are in the queue, instead of submitting them again.

    A pack writes for the pipeline that submitted it (`ready.FOLDER`).
    """
    if workflow.executor_plugin.name == "slurm":
        plugin = workflow.executor_plugin.executor
        plugin.run_job = adoption.taking_over(plugin.run_job, Path.cwd(), never=["pack"])


def check_gpus():
    """Exit if this machine has too few GPUs for a job: Snakemake would lower the request and start it anyway."""
    rules = {job.name for job in workflow.dag.needrun_jobs()}
    given = workflow.global_resources["gpu"].value if GPUS_ARE_GIVEN else None
    runtime, evaluate = experiment.runtime, experiment.evaluate.device
    lacking = None
    if rules & {"train", "trial"}:
        lacking = gpus.problem(runtime.device, runtime.nproc, GPUS, given=given)
    if lacking is None and "evaluate" in rules and evaluate.startswith("cuda"):
        lacking = gpus.problem(evaluate, 1, gpus.count(), given=given, setting="evaluate.device")
    if lacking is not None:
        say(f"nothing was started.\n{lacking}", "error")
        raise SystemExit(2)


def take_snapshot():
    """Copy the code of the project for the jobs, which then run what was submitted while the user goes on editing.

    The records of Snakemake get the code of this moment: those of jobs that wait are looked up before an edit.
    """
    for data in data_sets().values():
        data_code(data.name)
    for run in (*runs().values(), *trained_first().values()):
        code_state(run.config)
    if experiment.tune:
        code_of_study()
    configs = plans.all_configs(experiment, [*runs().values(), *trained_first().values()])
    try:
        code = code_snapshot.submitted() or snakefile.take_snapshot(configs, WORK)
    except (EverstepError, OSError) as error:
        say(f"jobs import the project itself, so an edit changes jobs that wait: {with_advice(error)}")
        return
    if code:
        os.environ.update(code_snapshot.environment(code))
        workflow.config_settings.config_args.append(f"code={code.name}")
        if copy := code_snapshot.copied(code, Path(workflow.main_snakefile), Path.cwd()):
            RealExecutor.get_snakefile = lambda executor: str(copy)


def record_start():
    """Tell `everstep run` that jobs begin, which runs need one, which runs are in packs, and where packs prepare results."""
    needed = {job.wildcards_dict.get("run") for job in workflow.dag.needrun_jobs()} - {None}
    packed = {id: [run for run, _ in pack.runs] for id, pack in packs().items()}
    recorder.record("started", runs=sorted(needed), packs=packed, prepared=os.environ[ready.FOLDER])


def remove_prepared():
    """Remove what packs have prepared for the jobs of this pipeline, which has ended."""
    if workflow.is_main_process:
        shutil.rmtree(os.environ[ready.FOLDER], ignore_errors=True)


def print_summary():
    """Print the summary of the report, if there is one; `everstep run` does so itself."""
    if Path(f"{RESULTS}/report.html").exists() and recorder.PATH not in os.environ:
        if summary := snakefile.summary(Path(RESULTS)):
            print(summary, flush=True)


def name_of(job):
    """Return what a job is called in messages: its rule and its wildcards."""
    return " ".join([job.name, *dict(job.wildcards).values()])


def resume_command():
    """Return the command that the user types to resume the pipeline."""
    return os.environ.get(recorder.COMMAND) or shlex.join(["snakemake", *sys.argv[1:]])


def print_failures():
    """Print the last line and the log of each failed job and the command that resumes; write the incomplete report."""
    jobs = sorted((name_of(job), next(map(Path, job.log), None)) for job in workflow.scheduler.failed)
    say(snakefile.failures(jobs, resume_command()), "error")
    # One that was stopped by a signal has no failed job, and ends without a report, since the user waits.
    if jobs and workflow.is_main_process and Path(f"{RESULTS}/plan.json").exists():
        shell(
            f"exec python -m workflow_lib report --incomplete --results {RESULTS} --plan {RESULTS}/plan.json"
            f" --output {RESULTS}/report.html || true"
        )
        say(f"the results so far are in {RESULTS}/report.html", "error")
