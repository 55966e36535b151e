"""The view of a pipeline in a notebook. IPython is no package of the tests, so a stand-in takes its part."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workflow_lib.live import displays
from workflow_lib.live.watch import Watch
from workflow_lib.store.events import EventLog, Follower


class Shell:
    """Stands for the shell of a kernel, and keeps what its cell shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, content: str, *, display_id: bool) -> Shell:
        assert display_id
        return self

    def update(self, content: str) -> None:
        self.shown.append(content)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = type(displays.KERNEL, (Shell,), {})()
    module, display = ModuleType("IPython"), ModuleType("IPython.display")
    values: dict[ModuleType, dict[str, Any]] = {
        module: {"get_ipython": lambda: shell, "display": display},
        display: {"display": shell.display, "HTML": str},
    }
    for target, names in values.items():
        for name, value in names.items():
            monkeypatch.setattr(target, name, value, raising=False)
        monkeypatch.setitem(sys.modules, target.__name__, target)
    monkeypatch.setattr(displays, "CELL_S", 0.0)
    made: Shell = shell
    return made


def test_a_notebook_shows_a_view_that_changes_in_place_and_lines(
    shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    events.append("plan", results=str(tmp_path / "results" / "a<b"), runs=["a-1"], is_local=True, experiment="e.json")
    events.append("jobs", counts={"train": 1, "total": 1})
    events.append("started", runs=["a-1"], packs={})
    with Watch(Follower(events.path), tmp_path / "log") as watch:
        watch.update()
        events.append("job", id=1, rule="train", wildcards={"run": "a-1"})
        events.append("failed", id=1, code=1, reason="everstep train: a bug")
        watch.update()
        first, second = shell.shown
        assert first.startswith("<pre ")
        assert "a&lt;b" in first
        assert "waiting" in first
        assert "failed" in second
    assert shell.shown[2:] == [""]  # nothing is left of the view
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:] for line in lines][1:] == ["train a-1 failed: a bug"]
    assert "a<b: 1 job to run: training" in lines[0]


def test_other_shells_of_ipython_show_lines_only(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert displays.open_display() is None
