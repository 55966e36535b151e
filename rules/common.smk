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
from workflow_lib import plugins, ready, records, snakefile, tracking
from workflow_lib.errors import EverstepError, with_advice
from workflow_lib.live import recorder
from workflow_lib.plan import packing, user_code
from workflow_lib.results import claims
from workflow_lib.results import layout as results_layout
from workflow_lib.runtime import gpus
from workflow_lib.slurm import adoption, budget, executor
from workflow_lib.store import code_snapshot, controllers, layout, results_folders
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
snakemake.exceptions.LockException = lambda: WorkflowError(controllers.lock_message(Path(".snakemake")))

# A pack decides when a run is trained, not what is trained: if Snakemake recorded it as an input, it would train the run
# again without the pack.
snakemake.persistence.PersistenceBase._input = snakefile.without_packs(
    snakemake.persistence.PersistenceBase._input
)

# Results of which Snakemake has no record are made again, if their names do not contain their settings. A Snakemake inside
# a cluster job makes only what it is told to.
if workflow.is_main_process:
    snakemake.persistence.PersistenceBase.has_metadata = records.has_metadata(
        snakemake.persistence.PersistenceBase.has_metadata
    )
    snakemake.persistence.PersistenceBase.params_changed = records.params_changed(
        snakemake.persistence.PersistenceBase.params_changed,
        snakemake.persistence.ParamsChange,
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
    snakemake.jobs.Job.restart_times = recorder.without_retries(
        snakemake.jobs.Job.restart_times, recorder.attach().rejected
    )


def is_dry_run():
    """Return whether no job will be started; `workflow.dryrun` is True only after all rules were read."""
    return bool(workflow.output_settings.stdout)


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
        snakefile.check_registry(experiment)
        if experiment.registry and experiment.registry.mlflow:
            tracking.check_installed(["mlflow"], "registry.mlflow")
        if experiment.notify and not is_dry_run():
            from workflow_lib import notify

            notify.check_environment(experiment.notify, os.environ)
        for damaged in snakefile.move_damaged(Path(f"results/{experiment.name}")):
            say(damaged)
        snakefile.check_records(Path(".snakemake"))
        for killed in controllers.enter(Path(".snakemake")):
            say(controllers.killed_words(killed, Path.cwd()))
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


def sources_of(configs):
    """Return the statements of the trainings that these runs start from."""
    refs = dict.fromkeys(ref for config in configs for ref in plans.sources_of(config).values())
    return [f"{RESULTS}/runs/{plans.planned_id(ref, runs())}/train.json" for ref in refs]


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


def of_each_run(name):
    """Return an input function for the file of this name of every reported run."""
    return lambda wildcards: expand(f"{RESULTS}/runs/{{run}}/{name}", run=reported_runs())


def workbook_of(experiment):
    """Return the output of the report that only report.excel writes."""
    return (
        {"workbook": f"results/{{experiment}}/{results_layout.RUNS_WORKBOOK}"}
        if experiment.report.excel
        else {}
    )
