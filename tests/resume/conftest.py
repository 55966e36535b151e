"""A warm process for all tests of a session, and a finished reference of each experiment that they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import SETTINGS, Project, copy, merged, prepare
from tests.support.warm import Warm

# fresh(changes) is a copy in which nothing is trained; reference(changes) was trained without a fault
Fresh = Callable[..., Project]


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


@pytest.fixture(scope="session")
def fresh(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    folder = tmp_path_factory.mktemp("projects")
    prepared: dict[str, Project] = {}
    numbers = count()

    def make(changes: Mapping[str, Any] | None = None) -> Project:
        name = repr(changes)
        if name not in prepared:
            prepared[name] = prepare(folder / f"prepared-{next(numbers)}", warm, merged(SETTINGS, changes or {}))
        return copy(prepared[name], folder / f"run-{next(numbers)}")

    return make


@pytest.fixture(scope="session")
def reference(fresh: Fresh) -> Fresh:
    finished: dict[str, Project] = {}

    def make(changes: Mapping[str, Any] | None = None) -> Project:
        name = repr(changes)
        if name not in finished:
            finished[name] = fresh(changes)
            finished[name].finish()
        return finished[name]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file stays with one worker, which then needs one warm process and one reference."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
