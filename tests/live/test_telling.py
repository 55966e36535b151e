"""People hear of a pipeline whose Snakemake is killed or does not begin, once; a short process stands for Snakemake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workflow_lib import config, plan
from workflow_lib.errors import EverstepError
from workflow_lib.live import pipeline
from workflow_lib.store.controllers import DETACHED

EXPERIMENT = "name: tiny\nnotify: {command_env: TELL}\n"
BEGINS = """
from workflow_lib.live import recorder
recorder.record("plan", results="results/tiny", runs=["tiny-1"], is_local=True, experiment="{frozen}")
recorder.record("started", runs=["tiny-1"], packs={{}}, prepared="ready")
"""
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
TOLD = 'recorder.record("told")\n'


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TELL", 'printf "%s\\n" "$EVERSTEP_EVENT $EVERSTEP_TEXT" >> told.txt')
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    return plan.freeze_experiment(config.load([Path("tiny.yaml")], []), Path("work"))


def fail(script: str, given: Path | None = None) -> list[str]:
    """Run a pipeline that fails; return the first lines of all messages so far."""
    with pytest.raises(EverstepError):
        pipeline.run([sys.executable, "-c", script], ["everstep", "run", "tiny.yaml"], given)
    lines = Path("told.txt").read_text().splitlines() if Path("told.txt").exists() else []
    return [line for line in lines if line.startswith("failure ")]


def test_a_killed_snakemake_is_told_once(frozen: Path) -> None:
    begins = BEGINS.format(frozen=frozen)
    assert fail(begins + TOLD + KILLED) == [], "Snakemake has told it"
    assert len(fail(begins + KILLED)) == 1
    assert len(fail(begins + KILLED)) == 1
    text = Path("told.txt").read_text()
    assert "pipeline: Snakemake ended with code -9" in text
    assert "resume: everstep run tiny.yaml" in text


def test_a_pipeline_that_does_not_begin_is_told_if_nobody_watches_it(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "raise SystemExit(2)"
    assert fail(refuses, frozen) == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(DETACHED, "7")
    assert len(fail(refuses, frozen)) == 1
