"""The verbs that the rules of the pipeline call."""

from __future__ import annotations

import os
from pathlib import Path

from workflow_lib.cli.options import (
    DATA,
    DEADLINE,
    EXPERIMENT,
    MODEL,
    ON_STOP,
    OUTPUT,
    RESULTS,
    RUN,
    TUNE_DIR,
    Arguments,
    Verbs,
    experiment_of,
    option,
    path,
)
from workflow_lib.store.layout import WORK

VERBS = Verbs(has_log=True)


@VERBS.add("freeze", "write the plan of an experiment and freeze its runs", EXPERIMENT, OUTPUT)
def _freeze(arguments: Arguments) -> None:
    from workflow_lib import plan
    from workflow_lib.store import results_folders

    experiment, output = experiment_of(arguments), arguments.output
    if output.parent.name == experiment.name:
        results_folders.register(WORK, output.parents[1])
    plan.write_plan(experiment, WORK, output)


@VERBS.add(
    "preprocess",
    "write the shards and the manifest of a data set",
    EXPERIMENT,
    option("--data", required=True, metavar="ID", help="data id in the plan"),
    option("--threads", type=int, default=1, metavar="N", help="number of shards written at once (default: 1)"),
    OUTPUT,
)
def _preprocess(arguments: Arguments) -> None:
    from workflow_lib.data import preprocess

    preprocess(experiment_of(arguments), arguments.data, WORK, arguments.output, arguments.threads)


@VERBS.add("train", "train a run, or resume it", EXPERIMENT, RUN, DATA, OUTPUT, DEADLINE, ON_STOP)
def _train(arguments: Arguments) -> None:
    from workflow_lib.launch import commands

    _prepare_to_fork()
    commands.train(
        experiment_of(arguments),
        run=arguments.run,
        data=arguments.data,
        work=WORK,
        output=arguments.output,
        deadline_minutes=arguments.deadline_minutes,
    )


def _prepare_to_fork() -> None:
    """Prepare to fork ranks before a module of the user, which may ask for GPUs, is imported."""
    from workflow_lib.runtime import forking

    def prepare() -> None:
        from workflow_lib.launch import launcher

        launcher.prepare()

    forking.prepare_later(prepare)


@VERBS.add(
    "pack",
    "train the runs of a pack, and evaluate and export them into the store",
    EXPERIMENT,
    option("--pack", required=True, metavar="ID", help="id of the pack, frozen in work/packs"),
    option("--threads", type=int, default=1, metavar="N", help="number of runs trained at once (default: 1)"),
    OUTPUT,
    DEADLINE,
    ON_STOP,
)
def _pack(arguments: Arguments) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # of each run; and a library with several threads must not be forked
    from workflow_lib import packs, plan

    experiment = experiment_of(arguments)
    packs.train(
        experiment,
        plan.load_pack(arguments.pack, WORK),
        work=WORK,
        threads=arguments.threads,
        output=arguments.output,
        logs=Path("logs", "pack", experiment.name, arguments.pack),
        deadline_minutes=arguments.deadline_minutes,
        is_requeued=arguments.on_stop == "requeue",
    )


@VERBS.add(
    "suggest",
    "suggest a trial of the study",
    EXPERIMENT,
    option("--number", type=int, required=True, metavar="N", help="number of the trial, from 0"),
    TUNE_DIR,
    OUTPUT,
)
def _suggest(arguments: Arguments) -> None:
    from workflow_lib import tuning

    tuning.suggest(experiment_of(arguments), arguments.number, arguments.tune_dir, WORK, arguments.output)


@VERBS.add(
    "trial",
    "train a suggested run and write the result of the trial",
    EXPERIMENT,
    path("--suggestion", text="suggestion of the trial"),
    DATA,
    OUTPUT,
    DEADLINE,
    ON_STOP,
)
def _trial(arguments: Arguments) -> None:
    from workflow_lib import tuning

    _prepare_to_fork()
    tuning.trial(
        experiment_of(arguments),
        arguments.suggestion,
        data=arguments.data,
        work=WORK,
        output=arguments.output,
        deadline_minutes=arguments.deadline_minutes,
    )


@VERBS.add("best", "select the best trial of the study and freeze its full run", EXPERIMENT, TUNE_DIR, OUTPUT)
def _best(arguments: Arguments) -> None:
    from workflow_lib import tuning

    tuning.best(experiment_of(arguments), arguments.tune_dir, WORK, arguments.output)


@VERBS.add("evaluate", "measure a model on the test split", EXPERIMENT, RUN, DATA, MODEL, OUTPUT)
def _evaluate(arguments: Arguments) -> None:
    from workflow_lib.results import computed

    experiment = experiment_of(arguments)
    given = {name: getattr(arguments, name) for name in ("run", "data", "model", "output")}
    if not computed.hand_out("evaluate", experiment, **given, work=WORK):
        from workflow_lib import evaluation

        evaluation.evaluate(experiment, **given, work=WORK)


@VERBS.add(
    "export",
    "export a model to ONNX and compare it with PyTorch",
    EXPERIMENT,
    RUN,
    DATA,
    MODEL,
    path("--evaluation", text="evaluation of the model"),
    OUTPUT,
)
def _export(arguments: Arguments) -> None:
    from workflow_lib.results import computed

    experiment = experiment_of(arguments)
    given = {name: getattr(arguments, name) for name in ("run", "data", "model", "evaluation", "output")}
    if not computed.hand_out("export", experiment, **given, work=WORK):
        from workflow_lib import export

        export.export(experiment, **given, work=WORK)


@VERBS.add(
    "report",
    "write the report of an experiment",
    EXPERIMENT,
    RESULTS,
    path("--plan", text="plan of the experiment"),
    OUTPUT,
    option("--incomplete", action="store_true", help="if some runs have no result, report the others"),
)
def _report(arguments: Arguments) -> None:
    from workflow_lib import plan, report

    runs = plan.reported_runs(arguments.plan)
    write = report.write_incomplete if arguments.incomplete else report.write
    write(experiment_of(arguments), arguments.results, runs, WORK, arguments.output)


@VERBS.add(
    "register", "put the best model into the registry, and promote it if it is better", EXPERIMENT, RESULTS, OUTPUT
)
def _register(arguments: Arguments) -> None:
    from workflow_lib import registry

    registry.register(experiment_of(arguments), arguments.results, WORK, arguments.output)


@VERBS.add("summary", "print the best run, its metrics and what to type next", RESULTS)
def _summary(arguments: Arguments) -> None:
    from workflow_lib import report

    print(report.summary(arguments.results))
