"""The verbs that users type."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.cli import completion
from workflow_lib.cli.options import (
    CONFIG,
    CONFIGS,
    FIRST_CONFIG,
    SET,
    Arguments,
    Verbs,
    option,
)
from workflow_lib.errors import ConfigError, EverstepError
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK

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
    option(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help="experiment file (default: config/config.yaml)",
        completes=completion.experiment_files,
    ),
    option(
        "--profile",
        default="local",
        metavar="P",
        help="`local` (default), `slurm`, or the folder of a profile",
        completes=completion.profiles,
    ),
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
    option("a", metavar="A", help="run id or experiment file", completes=completion.subjects),
    option(
        "b",
        nargs="?",
        metavar="B",
        help="run id or experiment file (default: run A with the current code)",
        completes=completion.subjects,
    ),
)
def _explain(arguments: Arguments) -> None:
    from workflow_lib.housekeeping import explain

    print(explain.explain(arguments.a, arguments.b, WORK))


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


@VERBS.add("schema", "print the JSON schema of experiment files, for editors")
def _schema(arguments: Arguments) -> None:
    import json

    from workflow_lib import config

    print(json.dumps(config.schema(), indent=2, sort_keys=True))
