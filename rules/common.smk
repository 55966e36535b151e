"""The experiment, its runs, and the functions that the rules share.

The experiment is read from `--configfile` (default: config/config.yaml) and `--config set="a.b=1 c=2"`, validated once, and
frozen in work/experiments/. Every job reads the frozen file, so that an edit of the YAML cannot break a queued job.
"""

import atexit
import gc
import os
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

# The plan of a large sweep has millions of permanent objects; garbage collection took a fifth of the planning time.
gc.set_threshold(100_000, 50, 50)
# The interpreter's last collection would visit all objects of Snakemake: a fifth of the CPU time of a short job.
atexit.register(gc.freeze)

# Import the package beside the Snakefile of a clone, even if another clone is installed in the environment.
clone = Path(workflow.snakefile).parents[1]
if (clone / "workflow_lib").is_dir():
    sys.path.insert(0, str(clone))

import snakemake.exceptions
import snakemake.jobs
import snakemake.persistence
from snakemake.settings.types import DeploymentMethod
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from workflow_lib import config as experiments
from workflow_lib import plan as plans
from workflow_lib import plugins, ready, snakefile, tracking
from workflow_lib.errors import EverstepError, with_advice
from workflow_lib.live import recorder
from workflow_lib.plan import packing, user_code
from workflow_lib.results import claims
from workflow_lib.results import layout as results_layout
from workflow_lib.runtime import gpus
from workflow_lib.slurm import budget, executor
from workflow_lib.store import code_snapshot, layout, results_folders
from workflow_lib.store.layout import WORK

code_state = user_code.memo(user_code.state)

# Inside a cluster job: the snapshot of the code that was submitted, which in a clone contains this file, too, and the
# image of its container.
job_given = (
    {} if workflow.is_main_process else snakefile.given_to_job(workflow.config_settings.config_args or [])
)
try:
    if "code" in job_given:
        code_snapshot.use(layout.code_snapshot(WORK, job_given["code"]).absolute())
    image = job_given.get("container") or snakefile.container_image(
        DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
    )
except EverstepError as error:
    print(f"everstep: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)

if image:

    container: image


# Snakemake raises this if another one uses the same files; its own message advises --unlock, which is unsafe here.
snakemake.exceptions.LockException = lambda: WorkflowError(snakefile.lock_message(Path(".snakemake")))

# A pack decides when a run is trained, not what is trained: if Snakemake recorded it as an input, it would train the run
# again without the pack.
snakemake.persistence.PersistenceBase._input = snakefile.without_packs(
    snakemake.persistence.PersistenceBase._input
)

# With a cluster, jobs that only hand out what a pack has computed run where Snakemake runs: a job of SLURM takes seconds
# to start, and they take half of one.
snakemake.jobs.Job.is_local = snakefile.also_local(
    snakemake.jobs.Job.is_local, lambda job: is_handed_out(job)
)

RemoteExecutor._wait_for_jobs = executor.check_jobs
RemoteExecutor.cancel = executor.cancel_all(RemoteExecutor.cancel)


def say(text, kind="message"):
    """Print a line for the user, also where `everstep run` shows it."""
    print(f"everstep: {text}", file=sys.stderr)
    recorder.record(kind, text=text)


@cache
def runs():
    """Return the runs of the plan by id. The Snakemake inside a cluster job does not use it: its run is frozen."""
    return {run.id: run for run in plans.expand(experiment)}


@cache
def trained_first():
    """Return the runs that others start from, by id, without those of the plan."""
    return plans.trained_first(plans.all_configs(experiment, runs().values()), runs(), WORK)


@cache
def data_sets():
    """Return the settings of every data set by id."""
    of_runs = {run.data_id: run.config.data for run in (*runs().values(), *trained_first().values())}
    return {plans.data_id(experiment): experiment.data} | of_runs


if workflow.is_main_process:
    recorder.attach()

try:
    paths = [Path(path) for path in workflow.overwrite_configfiles or ["config/config.yaml"]]
    settings = [] if job_given else snakefile.settings_of(workflow.config_settings.config_args or [])
    experiment = experiments.load(paths, settings)
    claim = claims.claim_of(paths, settings)
    if workflow.is_main_process:
        claims.check(results_layout.RESULTS, experiment.name, claim)
    frozen = plans.freeze_experiment(experiment, WORK)
    if workflow.is_main_process:
        results_folders.register(WORK, results_layout.RESULTS)
        everything = [*runs().values(), *trained_first().values()]
        snakefile.check_named_files([*data_sets().values(), *snakefile.models(experiment, everything)])
        snakefile.check_models(experiment, everything)
        tracking.check_installed(experiment.tracking.to)
        snakefile.check_excel(experiment)
        if experiment.registry and experiment.registry.mlflow:
            tracking.check_installed(["mlflow"], "registry.mlflow")
        if experiment.notify and not (workflow.dryrun or workflow.touch):
            from workflow_lib import notify

            notify.check_environment(experiment.notify, os.environ)
        for damaged in snakefile.move_damaged(Path(f"results/{experiment.name}")):
            say(damaged)
        snakefile.check_records(Path(".snakemake"))
        for killed in snakefile.enter(Path(".snakemake")):
            say(snakefile.killed_words(killed, Path.cwd()))
except (EverstepError, OSError) as error:
    say(with_advice(error), "error")
    raise SystemExit(getattr(error, "exit_code", 1))

os.environ.update(
    # The commands of the rules read the experiment from here.
    EVERSTEP_EXPERIMENT=str(frozen),
    # Jobs run with the interpreter that runs Snakemake, whether or not its environment is activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
)
if workflow.is_main_process:
    # Where packs prepare results for the jobs of this pipeline. A Snakemake inside a cluster job inherits it.
    os.environ[ready.FOLDER] = str(layout.new_ready_dir(WORK))
# Snakemake passes these to the Snakemake inside each cluster job.
workflow.config_settings.configfiles = [frozen.absolute()]
for_jobs = job_given | ({"container": image} if image else {})
workflow.config_settings.config_args = [f"{name}={value}" for name, value in for_jobs.items()]

# True if trainings run on this machine and not on the nodes of a cluster; False inside a cluster job.
IS_LOCAL = workflow.is_main_process and workflow.nodes is None
# GPUs that trainings may use here. Counted once, since each call of nvidia-smi takes 0.1 s or much longer.
GPUS = gpus.count_for(experiment.runtime.device) if IS_LOCAL else 0
# `--resources gpu=N`, on the command line or in a profile, overrides the count.
GPUS_ARE_GIVEN = "gpu" in workflow.global_resources
if GPUS and not GPUS_ARE_GIVEN:
    workflow.register_resource("gpu", GPUS)

RESULTS = f"results/{experiment.name}"
# Outputs of the pipeline, to which each rule file adds its own; Snakemake makes missing ones again. {experiment} and {run}
# are those of the current plan.
TARGETS = []


# Patterns instead of the current runs: a run of an earlier plan stays a valid target.
wildcard_constraints:
    experiment=re.escape(experiment.name),
    run=r"[A-Za-z0-9._-]+-[0-9a-f]{12}|tuned",
    data_id=r"[A-Za-z0-9._-]+-[0-9a-f]{12}",
    pack=r"[0-9a-f]{12}",


def reported_runs():
    """Return the names of the runs in the plan, and `tuned` if there is a study."""
    return [*runs(), *(["tuned"] if experiment.tune else [])]


if workflow.is_main_process:
    recorder.record(
        "plan",
        results=RESULTS,
        runs=[*trained_first(), *reported_runs()],
        is_local=IS_LOCAL,
        experiment=str(frozen),
    )


def targets(wildcards):
    """Return all outputs of the pipeline: the inputs of `rule all`."""
    sources = [f"{RESULTS}/runs/{run}/train.json" for run in trained_first()]
    return expand(TARGETS, experiment=experiment.name, run=reported_runs()) + sources


def settings_of_run(run):
    """Return the settings of a run, from the plan or, for a run of an earlier plan, as they are frozen."""
    if workflow.is_main_process and (planned := runs().get(run) or trained_first().get(run)):
        return planned.config
    return plans.load_run(run, WORK)[0]


def data_of(run):
    """Return the data id of a run."""
    if run == "tuned":
        return plans.data_id(experiment)
    if workflow.is_main_process and run in runs():
        return runs()[run].data_id
    return plans.data_id(settings_of_run(run))


def source_files(wildcards):
    """Return the user's files that a data set is read from; none for a data set of an earlier plan."""
    data = data_sets().get(wildcards.data_id)
    return list(snakefile.data_files(data).values()) if data else []


def source_state(wildcards):
    """Return a text that changes with the files of a data set and those in its folders."""
    data = data_sets().get(wildcards.data_id)
    try:
        return snakefile.files_state(data) if data else ""
    except EverstepError as error:  # Snakemake would show a traceback for an Exception
        say(error, "error")
        raise SystemExit(error.exit_code)


def source_code(wildcards):
    """Return a text that changes with the code of a data set."""
    data = data_sets().get(wildcards.data_id)
    return data_code(data.name) if data else ""


@cache
def data_code(name):
    """Return the digest of the code of data sets of this name."""
    return plugins.code(plugins.load("data", name)).digest


def run_code(wildcards):
    """Return a text that changes with the code of a run's model and hooks, and with the files in the model's settings."""
    run = wildcards.run
    if run == "tuned":
        return study_code(wildcards)
    return code_state(settings_of_run(run))


def study_code(wildcards):
    """Return a text that changes with the code of all models and hooks that the study may use."""
    return code_of_study()


@cache
def code_of_study():
    """Return `study_code`, which is the same for every trial."""
    return experiments.digest([code_state(run) for run in plans.studied(experiment)], "code")


def tuned_pointer():
    """Return the path of the file that points to the best run of the study."""
    return f"{RESULTS}/tune/{plans.study_id(experiment)}/best.json"


def run_inputs(wildcards):
    """Return the data manifest of a run; for the run `tuned` also the file that points to it."""
    data = f"{RESULTS}/data/{data_of(wildcards.run)}.json"
    return {"data": data, "best": tuned_pointer()} if wildcards.run == "tuned" else {"data": data}


def training_inputs(wildcards):
    """Return the inputs of a run: its data, the statements of the runs that it starts from, and its pack, if any."""
    of_tuned = wildcards.run == "tuned"
    sources = study_sources(wildcards) if of_tuned else sources_of([settings_of_run(wildcards.run)])
    pack = {"pack": f"{RESULTS}/packs/{pack_of()[wildcards.run]}.json"} if wildcards.run in pack_of() else {}
    return run_inputs(wildcards) | {"sources": sources} | pack


@cache
def packs():
    """Return the packs by id: of the runs without a result, if this Snakemake makes the whole pipeline."""
    asked = workflow.dag_settings
    if not workflow.is_main_process or not packing.is_wanted(experiment) or no_packs():
        return {}
    if set(asked.targets) - {"all"} or asked.batch:
        return {}
    names = (results_layout.TRAIN, results_layout.MODEL, results_layout.HISTORY)
    missing = [
        run
        for run in (*trained_first().values(), *runs().values())
        if not all(Path(f"{RESULTS}/runs/{run.id}/{name}").exists() for name in names)
    ]
    has_study = experiment.tune is not None and any(lacks_trial(n) for n in range(experiment.tune.trials))
    return plans.packs(experiment, missing, has_study=has_study, shares=IS_LOCAL and GPUS < 2)


def lacks_trial(number):
    """Return True if a trial, or its suggestion, has no file."""
    return not all(Path(f"{TUNE}/{name}-{number:04d}.json").exists() for name in ("suggest", "trial"))


@cache
def pack_of_trial(number):
    """Return the pack of a trial without a result as an input of its jobs, if there is one."""
    study = next((id for id, pack in packs().items() if pack.study), None)
    return {"pack": f"{RESULTS}/packs/{study}.json"} if study and lacks_trial(number) else {}


def no_packs():
    """Return why runs cannot be packed, or None."""
    return packing.obstacle(experiment, is_cluster=not IS_LOCAL)


@cache
def pack_of():
    """Return the pack of each packed run, by their ids; the run `tuned` is trained where its study is."""
    return {
        run: pack.id
        for pack in packs().values()
        for run in [*(run for run, _ in pack.runs), *(["tuned"] if pack.study else [])]
    }


def pack_data(wildcards):
    """Return the data manifests of a pack."""
    pack = packs().get(wildcards.pack) or plans.load_pack(wildcards.pack, WORK)
    return [f"{RESULTS}/data/{data}.json" for data in pack.data]


def pack_threads(wildcards):
    """Return the number of runs that a pack trains at once, each with one thread; on a cluster, the profile sets it."""
    if not IS_LOCAL or not packs():
        return 1
    pack = packs()[wildcards.pack]
    cores = max(1, workflow.cores // GPUS) if GPUS else workflow.cores  # a pack for each GPU
    return min(len(pack.runs) + (experiment.tune.window if pack.study else 0), cores)


def is_handed_out(job):
    """Return True if a pack has put the results of the job into the store."""
    if IS_LOCAL or job.rule.name not in ("train", "trial", "evaluate", "export"):
        return False
    if job.rule.name == "trial":
        number = int(job.wildcards_dict["number"])
        pack, subject = pack_of_trial(number).get("pack"), str(number)
    else:
        subject = job.wildcards_dict["run"]
        pack = f"{RESULTS}/packs/{pack_of()[subject]}.json" if subject in pack_of() else None
    kind = "computed" if job.rule.name in ("evaluate", "export") else "trained"
    return pack is not None and subject in snakefile.done_in_pack(Path(pack))[kind]


def sources_of(configs):
    """Return the statements of the trainings that these runs start from."""
    refs = dict.fromkeys(ref for config in configs for ref in plans.sources_of(config).values())
    return [f"{RESULTS}/runs/{plans.planned_id(ref, runs())}/train.json" for ref in refs]


def study_sources(wildcards):
    """Return the statements of all trainings that a trial or the best run may start from."""
    return sources_of(plans.studied(experiment))


def run_reference(wildcards):
    """Return the reference to a run in commands: its id, or the file that points to it."""
    return tuned_pointer() if wildcards.run == "tuned" else wildcards.run


def training_threads(wildcards):
    """Return the number of threads of all ranks on a node."""
    return experiment.runtime.nproc * experiment.runtime.threads


def training_gpus(wildcards):
    """Return the number of GPUs of a training on this machine; None on a cluster, where the profile sets it."""
    if not IS_LOCAL:
        return None
    return experiment.runtime.nproc if GPUS or experiment.runtime.device.startswith("cuda") else 0


def nodes():
    """Return the resources of a training on several nodes: one task per node, which the training starts with srun."""
    count = experiment.runtime.nodes
    return {"nodes": count, **({"tasks": count, "tasks_per_gpu": 0, "mpi": "srun"} if count > 1 else {})}


def study_results(wildcards):
    """Return the result of the study, or nothing if the experiment has none."""
    return tuned_pointer() if experiment.tune else []


def workbook_of(experiment):
    """Return the output of the report that only report.excel writes."""
    return (
        {"workbook": f"results/{{experiment}}/{results_layout.RUNS_WORKBOOK}"}
        if experiment.report.excel
        else {}
    )


def of_each_run(name):
    """Return an input function for the file of this name of every reported run."""
    return lambda wildcards: expand(f"{RESULTS}/runs/{{run}}/{name}", run=reported_runs())


def earlier_trials(wildcards):
    """Return the previous suggestion and the newest result that this suggestion may use."""
    number, window = int(wildcards.number), experiment.tune.window
    inputs = (
        {"previous": f"{RESULTS}/tune/{wildcards.study}/suggest-{number - 1:04d}.json"} if number > 0 else {}
    )
    if number >= window:
        inputs["result"] = f"{RESULTS}/tune/{wildcards.study}/trial-{number - window:04d}.json"
    return inputs | pack_of_trial(number)


def trial_inputs(wildcards):
    """Return the inputs of a trial: its suggestion, its data, what it may start from, and its pack, if any."""
    number = int(wildcards.number)
    return {
        "suggestion": f"{RESULTS}/tune/{wildcards.study}/suggest-{number:04d}.json",
        "data": f"{RESULTS}/data/{plans.data_id(plans.tuned_base(experiment))}.json",
        "sources": study_sources(wildcards),
    } | pack_of_trial(number)


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
    """Tell `everstep run` that jobs begin, which runs need one, and which runs are in packs."""
    needed = {job.wildcards_dict.get("run") for job in workflow.dag.needrun_jobs()} - {None}
    packed = {id: [run for run, _ in pack.runs] for id, pack in packs().items()}
    recorder.record("started", runs=sorted(needed), packs=packed)


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
