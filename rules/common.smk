"""What the rules have in common: the experiment, its runs, and the inputs that follow from a run.

The experiment comes from `--configfile` (default: config/config.yaml) and `--config set="a.b=1 c=2"`. It is validated
here, once, and frozen in work/experiments/: every job, also one that waits in a queue for days, reads the frozen file, so
that nobody can break it by editing the YAML.
"""

import gc
import os
import re
import sys
from functools import cache
from pathlib import Path

WORK = Path("work")

# The plan of a large sweep is millions of objects that stay: looking for garbage among them took a fifth of its time.
gc.set_threshold(100_000, 50, 50)

# The package beside this Snakefile, also where the environment holds another clone of it.
sys.path.insert(0, workflow.basedir)

import snakemake.exceptions
from snakemake_interface_common.exceptions import WorkflowError

from workflow_lib import config as experiments
from workflow_lib import plan as plans
from workflow_lib import plugins, snakefile, tracking
from workflow_lib.errors import EverstepError, with_advice
from workflow_lib.plan import user_code
from workflow_lib.results import claims
from workflow_lib.runtime import gpus
from workflow_lib.slurm import budget
from workflow_lib.store import results_folders

code_state = user_code.memo(user_code.state)


# Snakemake raises this if another one works on the same files; its own text advises --unlock.
snakemake.exceptions.LockException = lambda: WorkflowError(snakefile.refusal(Path(".snakemake")))


@cache
def runs():
    """The runs of the plan by id. A cluster job's own Snakemake does without: its run is frozen."""
    return {run.id: run for run in plans.expand(experiment)}


@cache
def data_sets():
    """The settings of every data set by id."""
    of_runs = {run.data_id: run.config.data for run in runs().values()}
    return {plans.data_id(experiment): experiment.data} | of_runs


try:
    paths = [Path(path) for path in workflow.overwrite_configfiles or ["config/config.yaml"]]
    settings = snakefile.settings_of(workflow.config_settings.config_args or [])
    experiment = experiments.load(paths, settings)
    claim = claims.of(paths, settings)
    if workflow.is_main_process:
        claims.check(Path("results"), experiment.name, claim)
    frozen = plans.freeze_experiment(experiment, WORK)
    if workflow.is_main_process:
        results_folders.note(WORK, Path("results"))
        snakefile.check_named_files([*data_sets().values(), *snakefile.models(experiment, runs().values())])
        tracking.check_installed(experiment.tracking.to)
        for damaged in snakefile.move_damaged(Path(f"results/{experiment.name}")):
            print(f"everstep: {damaged}", file=sys.stderr)
        snakefile.check_records(Path(".snakemake"))
        for killed in snakefile.enter(Path(".snakemake")):
            print(f"everstep: Snakemake {killed} was killed; its lock is removed", file=sys.stderr)
except (EverstepError, OSError) as error:
    print(f"everstep: {with_advice(error)}", file=sys.stderr)
    raise SystemExit(getattr(error, "exit_code", 1))

os.environ.update(
    # What the commands of the rules read.
    EVERSTEP_EXPERIMENT=str(frozen),
    # Jobs run with the interpreter that runs Snakemake, whether or not its environment is activated.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
)
# What Snakemake hands to the Snakemake inside each cluster job.
workflow.config_settings.configfiles = [frozen.absolute()]
workflow.config_settings.config_args = ""

# Trainings run on this machine, not on a cluster's nodes (this may also be the Snakemake inside a cluster's job).
IS_LOCAL = workflow.is_main_process and workflow.nodes is None
# GPUs that trainings may use here. Counted once, since each call of nvidia-smi takes 0.1 s or much longer.
GPUS = gpus.count_for(experiment.runtime.device) if IS_LOCAL else 0
# `--resources gpu=N`, on the command line or in a profile, overrides the count.
GPUS_ARE_GIVEN = "gpu" in workflow.global_resources
if GPUS and not GPUS_ARE_GIVEN:
    workflow.register_resource("gpu", GPUS)

RESULTS = f"results/{experiment.name}"
# What the pipeline makes, and makes again when it is lost; a rule file adds its own. {experiment} and {run} stand for
# today's.
TARGETS = []


# Patterns, not today's list: a run of yesterday's plan stays a valid target.
wildcard_constraints:
    experiment=re.escape(experiment.name),
    run=r"[A-Za-z0-9._-]+-[0-9a-f]{12}|tuned",
    data_id=r"[A-Za-z0-9._-]+-[0-9a-f]{12}",


def reported_runs():
    """Every run of the plan, and the tuned one."""
    return [*runs(), *(["tuned"] if experiment.tune else [])]


def targets(wildcards):
    """Every file that `rule all` wants."""
    return expand(TARGETS, experiment=experiment.name, run=reported_runs())


def data_of(run):
    """The data id of a run: of the plan, or, when it is no longer in it, by its settings as they were frozen."""
    if run == "tuned":
        return plans.data_id(experiment)
    if workflow.is_main_process and run in runs():
        return runs()[run].data_id
    return plans.data_id(plans.load_run(run, WORK)[0])


def source_files(wildcards):
    """The person's files of a data set: when they change, so does the data. None for one of an earlier plan."""
    data = data_sets().get(wildcards.data_id)
    return list(snakefile.data_files(data).values()) if data else []


def source_state(wildcards):
    """A text that changes with the files of a data set, and with those in its folders."""
    data = data_sets().get(wildcards.data_id)
    try:
        return snakefile.files_state(data) if data else ""
    except EverstepError as error:  # of the class Exception Snakemake would show a traceback
        print(f"everstep: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code)


def source_code(wildcards):
    """A text that changes with the code of a data set."""
    data = data_sets().get(wildcards.data_id)
    return plugins.code(plugins.load("data", data.name)).digest if data else ""


def run_code(wildcards):
    """A text that changes with the code of a run's model and hooks, and with the files that they are given."""
    run = wildcards.run
    if run == "tuned":
        return study_code(wildcards)
    planned = workflow.is_main_process and run in runs()
    return code_state(runs()[run].config if planned else plans.load_run(run, WORK)[0])


def study_code(wildcards):
    """The same, for all models and hooks that the study may take."""
    return experiments.digest([code_state(run) for run in plans.studied(experiment)], "code")


def tuned_pointer():
    """The file that says which run the best of the study is."""
    return f"{RESULTS}/tune/{plans.study_id(experiment)}/best.json"


def run_inputs(wildcards):
    """The data manifest of a run; for the tuned run also the file that says which run it is."""
    data = f"{RESULTS}/data/{data_of(wildcards.run)}.json"
    return {"data": data, "best": tuned_pointer()} if wildcards.run == "tuned" else {"data": data}


def run_reference(wildcards):
    """How a command names the run: by its id, or by the file that points to it."""
    return tuned_pointer() if wildcards.run == "tuned" else wildcards.run


def training_threads(wildcards):
    """The threads of every rank of a node together."""
    return experiment.runtime.nproc * experiment.runtime.threads


def training_gpus(wildcards):
    """Number of GPUs of a training on this machine; None on a cluster, where the profile sets the number."""
    if not IS_LOCAL:
        return None
    return experiment.runtime.nproc if GPUS or experiment.runtime.device.startswith("cuda") else 0


def nodes():
    """Resources of a training: one task on each of its nodes, which the training itself starts with srun."""
    count = experiment.runtime.nodes
    return {"nodes": count, **({"tasks": count, "tasks_per_gpu": 0, "mpi": "srun"} if count > 1 else {})}


def study_results(wildcards):
    """What the study leaves behind, when the experiment has one."""
    return tuned_pointer() if experiment.tune else []


def of_each_run(name):
    """The statement of that name of every reported run."""
    return lambda wildcards: expand(f"{RESULTS}/runs/{{run}}/{name}", run=reported_runs())


def earlier_trials(wildcards):
    """The suggestion before this one, and the newest result that it may know."""
    number, window = int(wildcards.number), experiment.tune.window
    inputs = (
        {"previous": f"{RESULTS}/tune/{wildcards.study}/suggest-{number - 1:04d}.json"} if number > 0 else {}
    )
    return inputs | (
        {"result": f"{RESULTS}/tune/{wildcards.study}/trial-{number - window:04d}.json"}
        if number >= window
        else {}
    )


def take_results():
    """The results belong to the experiment file; exit if another file took them a moment ago."""
    try:
        if line := claims.take(Path("results"), experiment.name, claim):
            print(f"everstep: {line}", file=sys.stderr)
    except EverstepError as error:
        print(f"everstep: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code)


def check_requests():
    """Exit before any job is started if the cluster, or this machine, can never give the jobs what they ask for."""
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
        print(f"everstep: {budget.check(budget.asked_by(jobs, experiment, sys.argv))}", file=sys.stderr)
    except EverstepError as error:
        print(f"everstep: nothing was submitted.\n{error}", file=sys.stderr)
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
        print(f"everstep: nothing was started.\n{lacking}", file=sys.stderr)
        raise SystemExit(2)


def tell_the_result():
    """The summary of the report, where there is one, is on the terminal."""
    if Path(f"{RESULTS}/report.html").exists():
        shell(f"exec python -m workflow_lib summary --results {RESULTS} || true")


def tell_what_failed():
    """Each failed job's last line and log, and the command that goes on, are on stderr."""
    jobs = sorted(
        (" ".join([job.name, *dict(job.wildcards).values()]), next(map(Path, job.log), None))
        for job in workflow.scheduler.failed
    )
    print(snakefile.failures(jobs, ["snakemake", *sys.argv[1:]]), file=sys.stderr)
    if workflow.is_main_process and Path(f"{RESULTS}/plan.json").exists():
        shell(
            f"exec python -m workflow_lib report --incomplete --results {RESULTS} --plan {RESULTS}/plan.json"
            f" --output {RESULTS}/report.html || true"
        )
        print(f"everstep: what there is, is reported in {RESULTS}/report.html", file=sys.stderr)
