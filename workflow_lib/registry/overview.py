"""A model of the registry as it is now, for lists and pages. What is damaged is named, and hides nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_lib.errors import EverstepError
from workflow_lib.files import read_json
from workflow_lib.registry import aliases, versions
from workflow_lib.results import layout


@dataclass(frozen=True)
class State:
    """A version.

    statement  its digests, metrics (`value`, `low`, `high` by name), `run`, `experiment`, `task`, `registered` (time)
    aliases    those that it has now
    problem    why it cannot be used, or None; its files are not compared with their digests
    """

    number: int
    folder: Path
    statement: Mapping[str, Any]
    aliases: tuple[str, ...]
    problem: str | None = None

    @property
    def run(self) -> str:
        """The name of its run in its experiment; the beginning of the run's digest if the name is unknown."""
        return str(self.statement.get("run_name") or self.statement.get("run", "damaged"))


@dataclass(frozen=True)
class Overview:
    """A model: its versions and, for each alias, all decisions, oldest first.

    own       number of the version of the experiment that was asked for
    problems  what is damaged besides versions
    """

    name: str
    versions: tuple[State, ...]
    decisions: Mapping[str, tuple[aliases.Decision, ...]]
    own: int | None = None
    problems: tuple[str, ...] = ()


def of_experiment(results: Path) -> Overview | None:
    """Return the model that the experiment with these results has registered; None if it has not registered one.

    Raises StateError if its statement is damaged.
    """
    path = results / layout.REGISTERED
    if not path.exists():
        return None
    found = read_json(path, "name", "version", "folder")
    registry = Path(found["folder"]).parents[2]  # <registry>/<name>/versions/000001
    return of_model(registry, found["name"], found["version"])


def of_model(registry: Path, name: str, own: int | None = None) -> Overview:
    """Return a model of the registry; `own` is a version that is listed even if it is gone."""
    decisions, problems = {}, []
    for alias in aliases.aliases(registry, name):
        try:
            decisions[alias] = tuple(aliases.decisions(registry, name, alias))
        except (EverstepError, OSError) as error:
            problems.append(str(error))
    held = {alias: history[-1]["holder"] for alias, history in decisions.items() if history}
    numbers = {*versions.numbers(registry, name), *(holder["number"] for holder in held.values() if holder)}
    return Overview(
        name,
        tuple(_state(registry, name, number, held) for number in sorted(numbers | ({own} if own else set()))),
        decisions,
        own,
        tuple(problems),
    )


def _state(registry: Path, name: str, number: int, held: Mapping[str, Any]) -> State:
    folder = versions.folder_of(registry, name, number)
    has = {alias: holder for alias, holder in held.items() if holder and holder["number"] == number}
    try:
        version = versions.load(registry, name, number)
    except (EverstepError, OSError) as error:
        return State(number, folder, {}, tuple(has), str(error))
    problem = None
    if others := [alias for alias, holder in has.items() if holder["digest"] != version.digest]:
        problem = f"{folder} is not the version that got {', '.join(others)}: its digest is another. Restore it"
    elif missing := [file for file in version.statement["files"] if not (folder / file).exists()]:
        problem = f"{folder}: without {', '.join(missing)}. Restore it from a copy"
    return State(number, folder, version.statement, tuple(has), problem)
