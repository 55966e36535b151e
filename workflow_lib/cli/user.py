"""The verbs that users type."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.cli.options import (
    CONFIG,
    CONFIGS,
    EXPERIMENT,
    FIRST_CONFIG,
    RUNS,
    SET,
    Arguments,
    Verbs,
    enter_project,
    experiment_of,
    option,
)
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK
from workflow_lib.text import byte_size, count, terminal_width

if TYPE_CHECKING:
    from workflow_lib.start import Guess

VERBS = Verbs()


DATA = option("--data", type=Path, metavar="PATH", help="file or folder: look at it, and guess the settings")


@VERBS.add(
    "new",
    "make a project: an experiment file, and a Snakefile for the installed pipeline",
    option("folder", type=Path, metavar="FOLDER", help="folder that is new or empty"),
    DATA,
)
def _new(arguments: Arguments) -> None:
    from workflow_lib import start

    guess = _guess(_absolute(arguments.data)) if arguments.data else start.DIGITS
    for path in start.new_project(arguments.folder, guess):
        print(path)
    print(f"next: cd {shlex.quote(str(arguments.folder))} && everstep run")


@VERBS.add(
    "init",
    "print a first experiment file, for given data if it is named",
    DATA,
    option("--all", action="store_true", help="print every setting with its default and its meaning"),
)
def _init(arguments: Arguments) -> None:
    from workflow_lib import config, start

    if arguments.all and arguments.data:
        raise ConfigError("--all prints the defaults, and --data settings for the data: give one of them")
    if arguments.all:
        print(config.template(), end="")
    elif arguments.data:
        # on a terminal, the comments of the file say what was found
        guess = start.guess(arguments.data) if sys.stdout.isatty() else _guess(arguments.data)
        print(start.first_experiment(arguments.data.absolute().stem, guess), end="")
    else:
        print(start.first_experiment("my-experiment"), end="")


def _absolute(path: Path) -> Path:
    """Return the absolute path without `..`, through the links that it was given with if it leads to the same place."""
    short = Path(os.path.abspath(path))  # noqa: PTH100
    return short if short.exists() and path.exists() and short.samefile(path) else path.resolve()


def _guess(path: Path) -> Guess:
    """Return the guess, and say what was found."""
    from workflow_lib import start

    guess = start.guess(path)
    for line in [*guess.found, *(f"odd: {line}" for line in guess.odd)]:
        print(line, file=sys.stderr)
    return guess


@VERBS.add("path", "print the folder with the installed Snakefile, rules, profiles and example experiments")
def _path(arguments: Arguments) -> None:
    from workflow_lib import shipped

    print(shipped.FOLDER)


@VERBS.add("validate", "report every mistake in experiment files: where it is, and what is allowed", CONFIGS, SET)
def _validate(arguments: Arguments) -> None:
    from workflow_lib.cli import validation

    problems = []
    for file in arguments.config:
        try:
            for line in validation.validated(file, arguments.set):
                print(f"{file}: {line}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


@VERBS.add(
    "run",
    "run the pipeline of an experiment and show its progress; arguments after -- go to Snakemake",
    option("config", nargs="?", type=Path, metavar="CONFIG", help="experiment file (default: config/config.yaml)"),
    option("--profile", default="local", metavar="P", help="`local` (default), `slurm`, or the folder of a profile"),
    SET,
    option("--detach", action="store_true", help="run it in a job of SLURM of its own, and return at once"),
)
def _run(arguments: Arguments) -> None:
    from workflow_lib import live

    given, typed = (arguments.config, arguments.profile, arguments.set, arguments.after), ["everstep", *sys.argv[1:]]
    if arguments.detach:
        print(live.detach(*given, typed))
    else:
        live.run(live.snakemake(*given), typed, arguments.config)


PROFILE = option(
    "--profile", type=Path, metavar="FOLDER", help="also list what the jobs request, and check it against the cluster"
)


@VERBS.add(
    "plan", "list the runs of an experiment and the settings that differ between them", FIRST_CONFIG, SET, PROFILE
)
def _plan(arguments: Arguments) -> None:
    from workflow_lib import config, plan
    from workflow_lib.plan import preview
    from workflow_lib.results import claims
    from workflow_lib.slurm import budget

    experiment = config.load([arguments.config], arguments.set)
    claims.check(RESULTS, experiment.name, claims.claim_of([arguments.config], arguments.set))
    print(plan.table(experiment))
    lines, problems = plan.columns(experiment)
    for line in lines:
        print(line)
    runs = plan.all_configs(experiment, plan.expand(experiment))
    found = preview.look(runs, experiment.runtime, Path.cwd(), with_sizes=True)
    for line in [*found.lengths, *found.sizes, *found.notes]:
        print(f"\n{line}")
    if arguments.profile:
        profile = budget.read_profile(arguments.profile)
        asked = budget.requests(experiment, profile)
        print(f"\n{budget.table(asked)}\n")
        is_slurm = profile.values.get("executor") == "slurm"
        print(budget.check(asked) if is_slurm else f"NOT CHECKED: {profile.path} has no `executor: slurm`")
    # a header that does not fit is found twice
    new = [problem for problem in found.problems if not any(known.endswith(problem) for known in problems)]
    if rejected := dict.fromkeys([*problems, *new]):
        raise ConfigError("\n".join(f"rejected: {problem}" for problem in rejected))


@VERBS.add(
    "explain",
    "list the settings and lines of code in which two runs or experiments differ",
    option("a", metavar="A", help="run id or experiment file"),
    option("b", nargs="?", metavar="B", help="run id or experiment file (default: run A with the current code)"),
)
def _explain(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import explain

    print(explain.explain(arguments.a, arguments.b, WORK))


@VERBS.add(
    "compare",
    "compare runs or experiments with the first: settings, metrics, differences that are more than noise, curves",
    option("subjects", nargs="+", metavar="A B", help="run id, folder of its results, or experiment; two or more"),
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
        "run", metavar="RUN", help="run id, folder of its results, train.json, experiment (its best run), or .onnx file"
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
    option("file", metavar="FILE", help="run id, or a file in results/EXPERIMENT/runs/RUN/"),
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
    option("experiment", nargs="?", metavar="EXPERIMENT", help="name or file of an experiment (default: all runs)"),
    option("--state", action="append", default=[], metavar="STATE", help="only runs in this state; may be repeated"),
    option("--watch", action="store_true", help="show the table again every two seconds, until Ctrl-C"),
    option("--json", action="store_true", help="print all details as JSON"),
)
def _status(arguments: Arguments) -> None:
    import json
    import os
    import sys

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
    option("experiment", nargs="?", metavar="EXPERIMENT", help="name or file of an experiment (default: all runs)"),
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
    "prove-resume",
    "train a run without interruption and again with kills, and compare the results bit by bit",
    CONFIG,
    SET,
    option("--kills", type=int, default=20, metavar="N", help="number of kills (default: 20)"),
    option("--seed", type=int, default=0, metavar="S", help="seed that decides where and how to kill (default: 0)"),
)
def _prove_resume(arguments: Arguments) -> None:
    import uuid

    from workflow_lib import config, prove
    from workflow_lib.launch import launcher
    from workflow_lib.store import layout

    if arguments.kills < 1:
        raise ConfigError(f"--kills {arguments.kills}: allowed: 1 and more; nothing is proved without a kill")
    launcher.prepare()
    experiment = config.load([arguments.config], arguments.set)
    folder = layout.proof_dir(WORK, uuid.uuid4().hex[:12])
    verdict = prove.prove(experiment, kills=arguments.kills, folder=folder, seed=arguments.seed)
    if verdict.difference is not None:
        raise EverstepError(str(verdict))
    print(verdict)


@VERBS.add(
    "track",
    "copy the learning curves to MLflow, TensorBoard or W&B, during the training or after it",
    option("experiment", nargs="?", type=Path, metavar="CONFIG", help=EXPERIMENT.settings["help"]),
    option("--follow", action="store_true", help="continue until every run is finished"),
    option("--to", action="append", metavar="TRACKER", help="overrides tracking.to of the file; may be repeated"),
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


@VERBS.add("schema", "print the JSON schema of experiment files, for editors")
def _schema(arguments: Arguments) -> None:
    import json

    from workflow_lib import config

    print(json.dumps(config.schema(), indent=2, sort_keys=True))
