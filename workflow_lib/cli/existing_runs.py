"""The verbs about runs that exist: look at them, compare them, keep or remove them, and use their models."""

from __future__ import annotations

import sys
from pathlib import Path

from workflow_lib.cli import completion
from workflow_lib.cli.options import CONFIG, EXPERIMENT, RUNS, SET, Arguments, enter_project, experiment_of, option
from workflow_lib.cli.user import VERBS
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK
from workflow_lib.text import byte_size, count, terminal_width


@VERBS.add(
    "compare",
    "compare runs or experiments with the first: settings, metrics, differences that are more than noise, curves",
    option(
        "subjects",
        nargs="+",
        metavar="A B",
        help="run id, folder of its results, or experiment; two or more",
        completes=completion.subjects,
    ),
    option("--html", type=Path, metavar="FILE", help="also write the comparison as a page"),
)
def _compare(arguments: Arguments) -> None:
    from workflow_lib import comparison

    if len(arguments.subjects) < 2:
        raise ConfigError(f"{arguments.subjects[0]}: name at least one more run or experiment to compare it with")
    found = comparison.compare([comparison.find(ref, RESULTS, WORK) for ref in arguments.subjects])
    print(comparison.shown(found, terminal_width()))
    if arguments.html is not None:
        comparison.write_page(found, arguments.html)
        print(f"\nwritten: {arguments.html}")


@VERBS.add("accept", "keep finished results of runs whose code has changed since, and record the decision", RUNS)
def _accept(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import code_changes

    for run in arguments.runs:
        print(code_changes.accept(run, WORK))


@VERBS.add("retrain", "move the trained state of runs aside, so that the pipeline trains them again", RUNS)
def _retrain(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import code_changes

    for run in arguments.runs:
        print(code_changes.retrain(run, WORK, RESULTS))


@VERBS.add(
    "predict",
    "predict with a trained run or a model.onnx for data without targets",
    option(
        "run",
        metavar="RUN",
        help="run id, folder of its results, train.json, experiment (its best run), or .onnx file",
        completes=completion.subjects,
    ),
    option("data", type=Path, metavar="DATA", help="file or folder of the kind that the run was trained on"),
    option("--output", type=Path, required=True, metavar="FILE", help="predictions: .csv, .parquet or .xlsx"),
    option("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda or cuda:N"),
    option("--batch-size", type=int, default=256, metavar="N", help="samples computed at once (default: 256)"),
    has_log=True,
)
def _predict(arguments: Arguments) -> None:
    from workflow_lib import prediction

    prediction.write_predictions(
        arguments.run,
        arguments.data,
        arguments.output,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )


@VERBS.add(
    "trace",
    "show the run, data, code and command that produced a result",
    option(
        "file", metavar="FILE", help="run id, or a file in results/EXPERIMENT/runs/RUN/", completes=completion.subjects
    ),
)
def _trace(arguments: Arguments) -> None:
    from workflow_lib.results import provenance

    path = Path(arguments.file)
    if not path.exists() and path.name == arguments.file:  # no path of a file that is missing
        from workflow_lib.results import layout, references

        path = references.find_run(arguments.file, RESULTS) / layout.TRAIN
    print(provenance.trace(path, WORK))


@VERBS.add(
    "status",
    "list the runs: state, step, speed, metrics, last checkpoint, attempts, owner",
    option(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="name or file of an experiment (default: all runs)",
        completes=completion.experiments,
    ),
    option(
        "--state",
        action="append",
        default=[],
        metavar="STATE",
        help="only runs in this state; may be repeated",
        completes=completion.states,
    ),
    option("--watch", action="store_true", help="show the table again every two seconds, until Ctrl-C"),
    option("--json", action="store_true", help="print all details as JSON"),
)
def _status(arguments: Arguments) -> None:
    import json
    import os

    from workflow_lib.housekeeping import status, status_table, watching

    experiment = enter_project(arguments.experiment)

    def rows() -> list[status.Row]:
        return status.chosen(status.runs(WORK, RESULTS), RESULTS, experiment, arguments.state)

    if arguments.json:
        print(json.dumps(rows(), indent=2))
        return
    is_coloured = status_table.may_colour(os.environ, is_terminal=sys.stdout.isatty())

    def text() -> str:
        is_terminal = sys.stdout.isatty()
        width = terminal_width() or status_table.WIDTH
        return status_table.table(rows(), is_coloured=is_coloured, width=width, is_terminal=is_terminal)

    if arguments.watch:
        watching.watch(text)
    else:
        print(text())


@VERBS.add(
    "serve",
    "show the runs on a page in the browser while they are trained; it only reads",
    option(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="name or file of an experiment (default: all runs)",
        completes=completion.experiments,
    ),
    option("--port", type=int, default=0, metavar="N", help="port on this machine (default: a free one)"),
)
def _serve(arguments: Arguments) -> None:
    from workflow_lib import serve

    serve.serve(enter_project(arguments.experiment), arguments.port, WORK, RESULTS)


@VERBS.add(
    "clean",
    "list the files that no result needs, with their size; --yes removes them",
    option("--yes", action="store_true", help="remove what is listed"),
)
def _clean(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import cleaning

    items = cleaning.removable(WORK, RESULTS)
    for item in items:
        print(f"{byte_size(item.bytes):>13}  {item.path}  ({item.why})")
    if not items:
        print("nothing to remove")
        return
    print(f"{byte_size(sum(item.bytes for item in items)):>13} in {count(len(items), 'place')}")
    if not arguments.yes:
        print("nothing was removed; --yes removes what is listed")
        return
    left = [f"{item.path} was left: {why}" for item, why in cleaning.clean(items) if why is not None]
    print(f"removed {len(items) - len(left)} of {count(len(items), 'place')}")
    if left:
        raise EverstepError("\n".join(left))


@VERBS.add(
    "track",
    "copy the learning curves to MLflow, TensorBoard or W&B, during the training or after it",
    option(
        "experiment",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help=EXPERIMENT.settings["help"],
        completes=completion.experiment_files,
    ),
    option("--follow", action="store_true", help="continue until every run is finished"),
    option(
        "--to",
        action="append",
        metavar="TRACKER",
        help="overrides tracking.to of the file; may be repeated",
        completes=completion.trackers,
    ),
    option("--output", type=Path, metavar="FILE", help="output file: the number of copied rows of each run"),
    has_log=True,
)
def _track(arguments: Arguments) -> None:
    from workflow_lib import tracking

    experiment = experiment_of(arguments)
    tracking.track(
        experiment,
        to=arguments.to or experiment.tracking.to,
        follow=arguments.follow,
        work=WORK,
        results=RESULTS,
        output=arguments.output,
    )


@VERBS.add(
    "study",
    "copy the trials of a study to an Optuna storage, for optuna-dashboard; again, to add those that are new",
    CONFIG,
    SET,
    option("--to", required=True, metavar="URL", help="storage, such as sqlite:///study.db"),
)
def _study(arguments: Arguments) -> None:
    from workflow_lib import config, plan, tuning
    from workflow_lib.results import layout

    experiment = config.load([arguments.config], arguments.set)
    if experiment.tune is None:
        raise ConfigError(f"{arguments.config} has no study: write a `tune:` section")
    study = tuning.load_study(experiment, layout.study_dir(RESULTS / experiment.name, plan.study_id(experiment)))
    new = tuning.copy_study(study, plan.study_metric(experiment), arguments.to)
    print(f"{study.study_name}: {count(len(study.trials), 'finished trial')}, {new} new in the storage")
