"""Fixtures and helpers of the tests of the experiment file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workflow_lib import config, plan
from workflow_lib.config import Experiment
from workflow_lib.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder outside of any project the current one, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Experiment:
    """Return the experiment of a file with this text."""
    Path("x.yaml").write_text(text, encoding="utf-8")
    return config.load([Path("x.yaml")], overrides)


def problems(text: str, *overrides: str) -> list[str]:
    """Return the lines of the ConfigError that loading a file with this text raises."""
    with pytest.raises(ConfigError) as rejected:
        load(text, *overrides)
    assert rejected.value.exit_code == 2
    return str(rejected.value).splitlines()


def plan_problems(path: Path, **sections: Any) -> list[str]:
    """Return the lines of the ConfigError of an experiment with these sections, without the file's name."""
    file = path / "x.yaml"
    file.write_text(json.dumps({"name": "a", **sections}, indent=1))
    with pytest.raises(ConfigError) as rejected:
        plan.expand(config.load([file]))
    return [line.partition("x.yaml:")[2] or line for line in str(rejected.value).splitlines()]


def run_count(path: Path, **sections: Any) -> int:
    """Return the number of runs of an experiment with these sections."""
    file = path / "x.yaml"
    file.write_text(json.dumps({"name": "a", **sections}))
    return len(plan.expand(config.load([file])))


SPACE = {"optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}
