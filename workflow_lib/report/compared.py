"""The chapter in which two runs are picked and compared: their settings, metrics and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow_lib.report.cost import hours
from workflow_lib.report.runs_table import shown_interval, shown_setting
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import Row, RunResults
from workflow_lib.store import layout
from workflow_lib.text import decimal, duration

MAX_RUNS = 200
FILES = {
    results_layout.TRAIN: "training",
    results_layout.HISTORY: "learning curve",
    results_layout.STEPS: "log of steps",
    results_layout.EVALUATION: "evaluation",
    results_layout.PREDICTIONS: "predictions",
    results_layout.MODEL: "weights",
    results_layout.ONNX: "ONNX model",
}


def measured_on(run: RunResults) -> str:
    """Return the word for the split of a run's metrics: a training step that validates by itself has no test."""
    return "Test" if run.evaluation["split"] == "test" else "Validation"


def compared_chapter(
    runs: Sequence[RunResults], metrics: Mapping[str, str], results: Path, work: Path, output: Path
) -> list[Row]:
    """Return the settings, metrics with intervals, cost and files of the best runs, in words."""
    found = []
    for run in runs[:MAX_RUNS]:
        measured = {label: run.evaluation["metrics"].get(name, {}) for name, label in metrics.items()}
        value, _ = run.best()
        numbers = {
            run.select_metric: f"{decimal(value)} ({run.best_place})",
            **{f"{measured_on(run)} {label}": _measured(values) for label, values in measured.items()},
            "Steps": decimal(run.train["steps"]),
            "Parameters": decimal(run.train["parameters"]),
            "Time of all attempts": duration(run.account.used_s),
            **({"GPU-hours": hours(run.account.used_gpu_s / 3600)} if run.account.used_gpu_s else {}),
            "CPU-hours": hours(run.account.used_cpu_s / 3600),
        }
        found.append(
            {
                "name": run.name,
                "settings": {name: shown_setting(value) for name, value in run.settings.items()},
                "numbers": numbers,
                "files": files_of(run, results, work, output),
            }
        )
    return found


def files_of(run: RunResults, results: Path, work: Path, output: Path) -> list[tuple[str, str]]:
    """Return the label and the path, relative to the page, of each file of a run that exists."""
    folder = results_layout.run_dir(results, run.name)
    paths = {label: folder / name for name, label in FILES.items()}
    paths["settings"] = layout.run_config(work, run.train["digest"])
    paths["log of the training"] = results.parent.parent / "logs" / "train" / results.name / f"{run.name}.log"
    return [(label, os.path.relpath(path, output.parent)) for label, path in paths.items() if path.exists()]


def _measured(values: Mapping[str, object]) -> str:
    value, interval = values.get("value"), shown_interval(values)
    return decimal(value if isinstance(value, int | float) else None) + (f" ({interval})" if interval else "")
