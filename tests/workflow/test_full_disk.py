"""On a full disk, every command ends with a line that says what to do, and `everstep clean` can free space."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.workflow.conftest import Project

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 and "CI" not in os.environ, reason="needs a disk of its own, mounted where nobody else sees it"
)
# Copies the project to a disk of its own, removes the outputs of the command, and fills the disk up to `$3` kilobytes.
SMALL_DISK = """
set -e
mount -t tmpfs -o size=48m none "$1"
cp -a "$2"/. "$1"
cd "$1"
rm -rf $4
dd if=/dev/zero of=reserve bs=1k count="$3" status=none
dd if=/dev/zero of=filler bs=4k status=none 2> /dev/null || true
rm reserve
shift 4
exec "$@"
"""
EXPERIMENT = ["--experiment", "config/tiny.yaml"]
TUNE = "results/tiny/tune"


def on_full_disk(project: Project, place: Path, verb: list[str], free_kb: int, removed: str) -> tuple[int, list[str]]:
    """Return the exit code of the command and the lines of its stderr."""
    place.mkdir(exist_ok=True)
    arguments = [str(place), str(project.folder), str(free_kb), removed]
    command = [sys.executable, "-m", "workflow_lib", *verb]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", SMALL_DISK, "bash", *arguments, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr.splitlines()


def verbs(project: Project) -> dict[str, tuple[list[str], str]]:
    """Return by name the arguments of each command, and the files that it writes."""
    path = min(project.folder.glob("results/tiny/runs/tiny-*/model.safetensors")).parent
    run, data = path.name, min(project.folder.glob("results/tiny/data/*.json")).name
    study = min(project.folder.glob(f"{TUNE}/*/best.json")).parent.name
    folder = f"results/tiny/runs/{run}"
    common = [*EXPERIMENT, "--run", run, "--data", f"results/tiny/data/{data}"]
    model = ["--model", f"{folder}/model.safetensors"]
    tune, suggestion = ["--tune-dir", f"{TUNE}/{study}"], f"{TUNE}/{study}/suggest-0000.json"
    return {
        "freeze": (["freeze", *EXPERIMENT, "--output", "results/tiny/plan.json"], "results/tiny/plan.json"),
        "preprocess": (
            ["preprocess", *EXPERIMENT, "--data", Path(data).stem, "--output", f"results/tiny/data/{data}"],
            "work/data results/tiny/data",
        ),
        "train": (["train", *common, "--output", f"{folder}/train.json"], f"work/runs/*/*/ {folder}"),
        "evaluate": (
            ["evaluate", *common, *model, "--output", f"{folder}/evaluation.json"],
            f"{folder}/evaluation.json {folder}/predictions.csv",
        ),
        "export": (
            [
                *("export", *common, *model, "--evaluation", f"{folder}/evaluation.json"),
                *("--output", f"{folder}/export.json"),
            ],
            f"{folder}/export.json {folder}/model.onnx",
        ),
        "suggest": (
            ["suggest", *EXPERIMENT, "--number", "0", *tune, "--output", suggestion],
            f"{TUNE}/{study} work/runs",
        ),
        "best": (["best", *EXPERIMENT, *tune, "--output", f"{TUNE}/{study}/best.json"], f"{TUNE}/{study}/best.json"),
        "report": (
            [
                *("report", *EXPERIMENT, "--results", "results/tiny", "--plan", "results/tiny/plan.json"),
                *("--output", "results/tiny/report.html"),
            ],
            "results/tiny/report.html results/tiny/runs.csv",
        ),
        "track": (["track", "config/tiny.yaml", "--to", "tensorboard"], "tracking"),
        "retrain": (["retrain", run], "nothing"),
        "prove-resume": (["prove-resume", "config/tiny.yaml", "--kills", "1"], "nothing"),
    }


@pytest.mark.parametrize("free_kb", [0, 16])
@pytest.mark.parametrize(
    "name",
    [
        *("freeze", "preprocess", "train", "evaluate", "export", "suggest", "best", "report", "track", "retrain"),
        "prove-resume",
    ],
)
def test_a_command_on_a_full_disk_says_what_to_do(finished: Project, tmp_path: Path, name: str, free_kb: int) -> None:
    """With 16 KB, commands that write little succeed."""
    verb, made = verbs(finished)[name]
    code, lines = on_full_disk(finished, tmp_path / "disk", verb, free_kb, made)
    if code == 0:
        assert free_kb > 0
        return
    assert code == 1, lines
    assert lines[-1].startswith(f"everstep {name}: "), lines
    assert "No space left on device" in lines[-1], lines
    assert "The disk is full: free some space (`everstep clean`" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_clean_frees_space_on_a_full_disk(finished: Project, tmp_path: Path) -> None:
    code, lines = on_full_disk(finished, tmp_path / "disk", ["clean", "--yes"], 0, "results/tiny")
    assert (code, lines) == (0, [])
