"""Hooks of the user are found by their names and rejected if they would never be called; their state is JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workflow_lib import config, plugins
from workflow_lib.config.compose import Source
from workflow_lib.config.run import Training
from workflow_lib.config.yaml import Origins
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import PluginError
from workflow_lib.training.hooks import Hooks

KEEPS = "def state_dict(): return {}\ndef load_state_dict(state): pass\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the path of an importable module `mine.watch`; remove the module from sys.modules afterwards."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    yield tmp_path / "mine" / "watch.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def on_epoch(state): pass",
            r"`on_epoch` is never called; did you mean `on_\w+`\? \(hooks: on_train_start, on_step_end, ",
        ),
        ("def other(state): pass", "no hook is defined; allowed: on_train_start"),
        ("def on_step_end(state): pass\ndef state_dict(): return {}", "or neither"),
        ("import a_module_that_nobody_has", "needs the module `a_module_that_nobody_has`"),
    ],
)
def test_a_module_that_cannot_be_used_is_rejected_by_the_settings(folder: Path, text: str, said: str) -> None:
    folder.write_text(text)
    with pytest.raises(PluginError, match=said):
        plugins.load_hooks("mine.watch")
    with pytest.raises(ValueError, match=said):
        Training(hooks="mine.watch")


def test_a_missing_module_is_rejected_with_the_expected_file() -> None:
    with pytest.raises(PluginError, match="no module `mine.nothing` to import for hooks; give an import path"):
        plugins.load_hooks("mine.nothing")


def test_a_module_of_functions_is_accepted(folder: Path) -> None:
    folder.write_text(f"def on_step_end(state): pass\n{KEEPS}")
    assert Training(hooks="mine.watch").hooks == "mine.watch"


def module(kept: Any) -> ModuleType:
    made = ModuleType("made")
    made.__dict__.update(state_dict=lambda: kept, load_state_dict=lambda state: made.__dict__.update(loaded=state))
    return made


def test_a_message_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"training.hooks: no module `mine.nothing`"):
        config.validate(Source({"name": "x", "training": {"hooks": "mine.nothing"}}, Origins()), None)


def test_the_state_is_a_copy_that_a_resume_restores() -> None:
    kept = {"seen": [1, 2.5, None, "é"]}
    hooks = Hooks(made := module(kept))
    state = hooks.state()
    kept["seen"].append(3)
    assert state == {"seen": [1, 2.5, None, "é"]}
    hooks.restore(state)
    assert vars(made)["loaded"] == state


@pytest.mark.parametrize("kept", [{1, 2}, float("nan"), [object()], {(1, 2): 3}, {1: 2}, (1, 2)])
def test_a_state_that_json_cannot_hold_is_rejected(kept: Any) -> None:
    with pytest.raises(ConfigError, match=r"training.hooks: made.state_dict\(\) returned what JSON cannot hold"):
        Hooks(module(kept)).state()


def test_a_module_without_state_dict_has_no_state() -> None:
    hooks = Hooks(ModuleType("made"))
    assert hooks.state() is None
    hooks.restore(None)
