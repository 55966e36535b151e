"""The declaration of a verb, and the options that several verbs share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.cli import completion
from workflow_lib.cli.completion import Completer
from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

Arguments = argparse.Namespace
Call = Callable[[Arguments], None]


@dataclass(frozen=True)
class Option:
    """The arguments of `ArgumentParser.add_argument`."""

    names: tuple[str, ...]
    settings: dict[str, Any]
    completes: Completer | None = None  # returns what a shell offers; None: files if the type is a path


def option(*names: str, completes: Completer | None = None, **settings: Any) -> Option:
    """Return an option, or a positional argument if the name has no dashes."""
    return Option(names, settings, completes)


def path(*names: str, text: str) -> Option:
    """Return a required option that takes a path."""
    return option(*names, type=Path, required=True, metavar="FILE", help=text)


@dataclass(frozen=True)
class Verb:
    """A verb: its help, its options and the function that it calls."""

    name: str
    help: str
    options: tuple[Option, ...]
    call: Call
    has_log: bool  # the package's log goes to standard error


class Verbs(list[Verb]):
    """The verbs of a module, in the order in which `--help` lists them."""

    def __init__(self, *, has_log: bool = False) -> None:
        super().__init__()
        self._has_log = has_log

    def add(self, name: str, text: str, *options: Option, has_log: bool | None = None) -> Callable[[Call], Call]:
        """Return a decorator that registers a function as a verb; ``has_log`` overrides that of the module."""
        logs = self._has_log if has_log is None else has_log

        def declare(call: Call) -> Call:
            self.append(Verb(name, text, options, call, logs))
            return call

        return declare


FIRST = Path("config/config.yaml")
FIRST_CONFIG = option(
    "config",
    nargs="?",
    type=Path,
    default=FIRST,
    metavar="CONFIG",
    help=f"experiment file (default: {FIRST})",
    completes=completion.experiment_files,
)
CONFIG = option(
    "config", type=Path, metavar="CONFIG", help="experiment file (YAML)", completes=completion.experiment_files
)
CONFIGS = option(
    "config",
    type=Path,
    metavar="CONFIG",
    nargs="*",
    default=[FIRST],
    help=f"experiment files (YAML), checked one by one (default: {FIRST})",
    completes=completion.experiment_files,
)
SET = option(
    "--set", action="append", default=[], metavar="'A.B=1 C=2'", help="settings that override the file; may be repeated"
)
EXPERIMENT = option("--experiment", type=Path, metavar="FILE", help="experiment file (default: $EVERSTEP_EXPERIMENT)")
RUNS = option("runs", nargs="+", metavar="RUN", help="run id or its digest", completes=completion.runs)
RUN = option("--run", required=True, metavar="RUN", help="run id, or a JSON file that refers to a run")
DATA = path("--data", text="manifest of the prepared data")
MODEL = path("--model", text="trained weights (safetensors)")
OUTPUT = path("--output", text="output file, written atomically")
TUNE_DIR = path("--tune-dir", text="folder with the suggestions and results of the study")
RESULTS = path("--results", text="results folder of the experiment")
DEADLINE = option(
    "--deadline-minutes",
    type=float,
    metavar="M",
    help="time limit of the job in minutes; the training saves and stops before it",
)
ON_STOP = option(
    "--on-stop",
    choices=("retry", "requeue"),
    default="retry",
    help="after a training saved and stopped: exit with code 75 (retry), or also have SLURM requeue the job (requeue)",
)


def experiment_of(arguments: Arguments) -> Experiment:
    """Load the experiment file of the arguments or of EVERSTEP_EXPERIMENT; raises ConfigError if there is none."""
    from workflow_lib import config

    file = arguments.experiment or os.environ.get("EVERSTEP_EXPERIMENT")
    if not file:
        raise ConfigError("no experiment file given: name one, for example config/config.yaml")
    return config.load([Path(file)])


def enter_project(experiment: str | None) -> str | None:
    """Change to the nearest project above unless this folder is one; return the experiment as it is named there."""
    from workflow_lib import config

    project = config.project_above()
    if project is None:
        return experiment
    file = Path(experiment or "")
    named = str(file.absolute()) if file.is_file() else experiment
    os.chdir(project)
    print(f"everstep: the project is {project}", file=sys.stderr)
    return named
