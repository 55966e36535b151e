"""Fixtures and helpers of the tests of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workflow_lib.config import Experiment

TUNE = {"trials": 4, "space": {"optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}}


def experiment(**sections: Any) -> Experiment:
    """Return the experiment with these sections."""
    return Experiment.model_validate({"name": "a", **sections})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
