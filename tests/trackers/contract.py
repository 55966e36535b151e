"""The laws of a tracker. A new one inherits them:

from tests.trackers.contract import Points, TrackerContract

class TestMine(TrackerContract):
    name = "mine"

    def read(self, folder: Path, run: str) -> Points:
        return ...  # by other means than the tracker's own
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workflow_lib import tracking
from workflow_lib.metrics.sheets import sheet
from workflow_lib.results import summaries
from workflow_lib.training.histograms import statistics

DATA = "d" * 32
Points = dict[tuple[str, int], list[float]]  # the values of each metric and step


def row(epoch: int, loss: float | None = None) -> tracking.Row:
    """Return the metrics of an epoch; the loss falls by default."""
    return {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "val_loss": loss if loss is not None else 1 / epoch}


def curve(*rows: tracking.Row, is_finished: bool = False) -> tracking.Curve:
    """Return the curve of `demo-a` with these rows, measured a minute apart, and many settings."""
    times = tuple(1e9 + 60 * row["epoch"] for row in rows)
    settings = {"optimizer.lr": 0.1, **{f"model.params.p{n}": "x" * 600 for n in range(120)}}
    return tracking.Curve(
        "demo", "demo-a", "a" * 32, DATA, f"{DATA[:12]}-{'c' * 12}", settings, rows, times, 1e9, is_finished
    )


def points(*rows: tracking.Row) -> Points:
    """Return the points that a copy of the rows has."""
    return {(name, int(row["step"])): [row[name]] for row in rows for name in ("epoch", "lr", "val_loss")}


def recorded(folder: Path, step: int) -> tracking.Recorded:
    """Return the summary of a step, as a training writes it: one histogram and one image, whose width is the step."""
    path = folder / f"summaries/{step}"
    found = statistics({"gradients/w": torch.arange(float(step))})
    summaries.write(path, found, {"inputs": sheet([[np.zeros((96, 100 + step, 3), np.uint8)]])})
    return tracking.Recorded(step, path, path.stat().st_size, 1e9 + step)


def counts(step: int) -> list[int]:
    return np.histogram(np.arange(step), summaries.BINS)[0].tolist()


def write(name: str, folder: Path, *curves: tracking.Curve) -> list[int]:
    """Return how many rows of each curve were new; the tracker is opened again for each."""
    new = []
    for curve in curves:
        with tracking.open_tracker(name, folder) as tracker:
            new.append(tracker.write(curve))
    return new


class TrackerContract(ABC):
    """Every test here must hold for the tracker `name`."""

    name: str

    @abstractmethod
    def read(self, folder: Path, run: str) -> Points:
        """Return the points of a run in the copy."""

    @abstractmethod
    def media(self, folder: Path, run: str) -> list[tuple[int, list[int], int]]:
        """Return the counts of `gradients/w` and the width of `inputs` of each step in the copy, in any order."""

    def stored(self, value: float) -> float:
        """Return the value in the tool's precision."""
        return value

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def expected(self, *rows: tracking.Row) -> Points:
        return {place: [self.stored(value) for value in values] for place, values in points(*rows).items()}

    def test_each_row_is_copied_once_however_often_it_is_written(self, folder: Path) -> None:
        rows = [row(1), row(2), row(3)]
        some, every = curve(*rows[:2]), curve(*rows, is_finished=True)
        assert write(self.name, folder, some, some, every, every) == [2, 0, 1, 0]
        assert self.read(folder, "demo-a") == self.expected(*rows)

    def test_rows_that_a_run_lost_or_changed_are_replaced(self, folder: Path) -> None:
        write(self.name, folder, curve(row(1), row(2), row(3)), curve(row(1)))
        assert self.read(folder, "demo-a") == self.expected(row(1))
        write(self.name, folder, curve(row(1), row(2, loss=0.25)))
        assert self.read(folder, "demo-a") == self.expected(row(1), row(2, loss=0.25))

    def test_runs_do_not_mix(self, folder: Path) -> None:
        other = replace(curve(row(1, loss=9.0)), id="demo-b", digest="b" * 32)
        write(self.name, folder, curve(row(1)), other, curve(row(1), row(2)))
        assert self.read(folder, "demo-a") == self.expected(row(1), row(2))
        assert self.read(folder, "demo-b") == self.expected(row(1, loss=9.0))

    def test_the_log_of_steps_is_copied_beside_the_rows(self, folder: Path) -> None:
        logged = [{"step": step, "lr": 0.5, "train_loss": 1 / step} for step in (5, 10, 15)]
        some, every = (
            replace(curve(*rows), log=tuple(log), log_times=(1e9,) * len(log))
            for rows, log in (([row(1)], logged[:2]), ([row(1), row(2)], logged))
        )
        write(self.name, folder, some, every, every)
        steps = {("step_train_loss", int(each["step"])): [self.stored(each["train_loss"])] for each in logged}
        rates = {("step_lr", int(each["step"])): [self.stored(0.5)] for each in logged}
        assert self.read(folder, "demo-a") == self.expected(row(1), row(2)) | steps | rates

    def test_gradients_and_images_are_copied_once_beside_the_rows(self, folder: Path) -> None:
        found = [recorded(folder, step) for step in (5, 10, 15)]
        some = replace(curve(row(1)), recorded=tuple(found[:2]))
        every = replace(curve(row(1), row(2)), recorded=tuple(found))
        write(self.name, folder, some, every, every)
        assert sorted(self.media(folder, "demo-a")) == [(step, counts(step), 108 + step) for step in (5, 10, 15)]
        norms = {("gradient_norm", step): [float(np.linalg.norm(np.arange(step)))] for step in (5, 10, 15)}
        norms = {place: [self.stored(value) for value in values] for place, values in norms.items()}
        assert self.read(folder, "demo-a") == self.expected(row(1), row(2)) | norms
