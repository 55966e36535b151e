from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from workflow_lib.live import screen
from workflow_lib.live.jobs import Pipeline
from workflow_lib.live.training import Training
from workflow_lib.store.events import EventLog

DIGESTS = [f"{number:032x}" for number in range(1, 5)]
RUNS = [f"digits-hidden64-lr0.001-dropout0.25-{digest[-12:]}" for digest in DIGESTS]
EPOCH = {"epoch": 3, "step": 150, "steps": 500, "samples_per_s": 640.0, "train_loss": 0.5, "val_accuracy": 0.875}


def pipeline() -> Pipeline:
    """Return a pipeline of four runs: one failed, one was finished before, one is trained, one waits."""
    made = Pipeline()
    events: list[dict[str, Any]] = [
        {"kind": "plan", "results": "results/digits", "runs": RUNS, "is_local": True},
        {"kind": "jobs", "counts": {"train": 3, "evaluate": 3, "total": 6}},
        {"kind": "started", "runs": [RUNS[0], RUNS[2], RUNS[3]]},
        {"kind": "job", "id": 1, "rule": "train", "wildcards": {"run": RUNS[0]}, "log": ["a.log"]},
        {"kind": "failed", "id": 1},
        {"kind": "job", "id": 2, "rule": "train", "wildcards": {"run": RUNS[2]}, "log": ["b.log"]},
    ]
    for event in events:
        made.apply(event)
    return made


def test_each_run_has_a_state() -> None:
    assert [pipeline().state_of(run) for run in RUNS] == ["failed", "finished", "training", "waiting"]


def test_a_failed_job_that_starts_again_is_running() -> None:
    made = pipeline()
    again = made.apply({"kind": "job", "id": 1, "rule": "train", "wildcards": {"run": RUNS[0]}, "log": []})
    assert again is not None
    assert again.attempts == 2
    assert made.state_of(RUNS[0]) == "training"


def training(work: Path) -> Training:
    """Return the progress of the third run after three of ten epochs."""
    folder = work / "runs" / ("0" * 20 + RUNS[2][-12:])
    (folder / "aaaaaaaaaaaa-bbbbbbbbbbbb").mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"training": {"select_metric": "val_accuracy", "epochs": 10, "batch_size": 64}}'
    )
    found = Training("0" * 20 + RUNS[2][-12:], work)
    events = EventLog(folder / "aaaaaaaaaaaa-bbbbbbbbbbbb" / "events.jsonl")
    events.append("epoch", **EPOCH)
    events.append("log", level="warning", message="the disk is slow")
    assert found.update() == ["the disk is slow"]
    assert found.update() == []
    return found


def test_the_progress_of_a_training_is_read_from_its_events(tmp_path: Path) -> None:
    found = training(tmp_path)
    assert (found.place, found.loss, found.value) == ("epoch 3/10", 0.5, 0.875)
    assert found.left_s == 350 * 64 / 640


def shown(width: int, height: int, work: Path) -> list[str]:
    """Return the lines of the live view on a terminal of this size."""
    written = StringIO()
    console = Console(width=width, height=height, force_terminal=True, color_system=None, file=written)
    trainings = {f"train {RUNS[2]}": training(work)}
    console.print(screen.view(pipeline(), trainings, elapsed_s=90, width=width, height=height))
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_the_view_fits_80_columns_and_names_every_run(tmp_path: Path) -> None:
    lines = shown(80, 24, tmp_path)
    assert max(map(len, lines)) <= 80
    assert [line.split()[1] for line in lines if "…" in line] == ["failed", "finished", "training", "waiting"]
    assert all(any(run[-12:] in line for line in lines) for run in RUNS)
    (row,) = (line.split() for line in lines if "training" in line.split())
    assert row[2:] == ["3/10", "0.5000", "0.8750", "640", "35", "s"]


def test_a_wide_terminal_also_shows_steps_and_whole_names(tmp_path: Path) -> None:
    (row,) = (line.split() for line in shown(200, 24, tmp_path) if "training" in line.split())
    assert row == [RUNS[2], "training", "3/10", "150/500", "0.5000", "0.8750", "640", "35", "s"]


def test_a_low_terminal_shows_what_runs_and_counts_the_others(tmp_path: Path) -> None:
    lines = shown(80, 8, tmp_path)
    assert any("training" in line for line in lines)
    assert "and 1 more: 1 finished" in lines
    assert len(lines) <= 8
