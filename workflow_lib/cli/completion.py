"""Completion of arguments in the shell: the runs, experiments and files of the current folder, and fixed names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from workflow_lib import plugins, shipped
from workflow_lib.files import names_in
from workflow_lib.results import layout

Completer = Callable[[str], Iterable[str]]  # from what is typed to what may be meant
CONFIGS = Path("config")
YAML = (".yaml", ".yml")


def answer(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and end this process."""
    import argcomplete

    def nothing(**_: Any) -> list[str]:
        return []

    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=cast("Any", nothing))


def prepare(action: argparse.Action, completes: Completer | None) -> None:
    """Let the shell offer for an argument what `completes` returns, or files if a path is meant."""
    chosen = completes or (files if action.type is Path else None)
    if chosen is not None:
        action.completer = lambda prefix, **_: chosen(prefix)  # type: ignore[attr-defined]


def files(typed: str, endings: tuple[str, ...] = ("",)) -> list[str]:
    """Return the folders, and the files with one of the endings, in the folder that is typed."""
    folder, slash, begun = typed.rpartition("/")
    inside = Path(folder + slash).expanduser()
    names = [name for name in names_in(inside) if begun.startswith(".") or not name.startswith(".")]
    folders = {name for name in names if (inside / name).is_dir()}
    return [
        f"{folder}{slash}{name}{'/' if name in folders else ''}"
        for name in names
        if name in folders or name.endswith(endings)
    ]


def experiment_files(typed: str) -> list[str]:
    """Return YAML files, also those of the folder `config`, and folders."""
    return [*files(typed, YAML), *(str(CONFIGS / name) for name in names_in(CONFIGS) if name.endswith(YAML))]


def experiments(typed: str) -> list[str]:
    """Return the names of planned experiments, and experiment files."""
    return [*_experiments(), *experiment_files(typed)]


def _experiments() -> list[str]:
    return [plan.parent.name for plan in layout.all_plans(layout.RESULTS)]


def runs(typed: str) -> list[str]:
    """Return the ids of runs with results."""
    folders = [layout.runs_dir(layout.RESULTS / name) for name in _experiments()]
    return sorted({run for folder in folders for run in names_in(folder)})


def subjects(typed: str) -> list[str]:
    """Return runs and planned experiments, and files."""
    return [*runs(typed), *_experiments(), *files(typed)]


def states(typed: str) -> Iterable[str]:
    """Return the states of runs."""
    from workflow_lib.housekeeping.status import STATES

    return STATES


def trackers(typed: str) -> Iterable[str]:
    """Return the names of trackers."""
    return plugins.available("trackers")


def profiles(typed: str) -> list[str]:
    """Return the names of profiles, and folders."""
    places = [Path("profiles"), shipped.FOLDER / "profiles"]
    return [*sorted({name for place in places for name in names_in(place)}), *files(typed, ("/",))]
