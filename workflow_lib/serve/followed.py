"""A workspace that is followed: its warnings and its learning curve, of which only what is new is read."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

from workflow_lib.live.training import WARNINGS
from workflow_lib.report.curves import MAX_POINTS, columns_of
from workflow_lib.store import layout
from workflow_lib.store.events import Follower

FIRST_BYTES = 1 << 16  # of the events before the page was opened
MOST_WARNINGS = 20  # of a run
Row = dict[str, Any]
Stamp = tuple[int, int, int]


class Followed:
    """The warnings and the curve of a workspace; `version` is greater after each change of the curve."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._events = Follower(layout.events_file(workspace), last_bytes=FIRST_BYTES)
        self.warnings: deque[tuple[str, str]] = deque(maxlen=MOST_WARNINGS)  # time and message
        self._losses: list[tuple[int, float]] = []  # of the training, between validations
        self._stamp: Stamp | None = None
        self._history: list[Row] = []
        self._best: int | None = None
        self.version = 0

    def update(self, version: int, best: int | None) -> None:
        """Read what is new; if the curve has changed, it gets this version.

        `best` is the epoch whose weights are kept, if that is known.
        """
        before, best_before, self._best = self._losses[-1:], self._best, best
        for event in self._events.new():
            self._take(event)
        path = layout.metrics_file(self._workspace)
        if (stamp := stamp_of(path)) != self._stamp:
            self._stamp, self._history, self.version = stamp, _rows(path), version
        elif self._losses[-1:] != before or best != best_before:
            self.version = version

    def _take(self, event: Row) -> None:
        match event:
            case {"kind": "log", "level": str(level), "message": str(message), "time": str(time)} if level in WARNINGS:
                self.warnings.append((time, message))
            case {"kind": "progress", "step": int(step), "loss": int() | float() as loss} if math.isfinite(loss):
                while self._losses and self._losses[-1][0] >= step:
                    self._losses.pop()  # a later attempt resumed from an older checkpoint
                self._losses = [*self._losses[1 - MAX_POINTS :], (step, loss)]

    def curve(self, name: str) -> Row:
        """Return the columns that traces.js draws."""
        metrics = dict.fromkeys(name for row in self._history[:1] for name in row if name.startswith("val_"))
        columns = columns_of(name, self._history, metrics, -1 if self._best is None else self._best, self._workspace)
        validated = zip(columns["step"], columns["train_loss"], strict=True)
        points = [(step, loss) for step, loss in validated if loss is not None]
        points += [(step, loss) for step, loss in self._losses if not columns["step"] or step > columns["step"][-1]]
        columns["steps"] = {"step": [step for step, _ in points], "train_loss": [loss for _, loss in points]}
        return columns


def stamp_of(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _rows(path: Path) -> list[Row]:
    """Return the rows of a learning curve; the last line may be incomplete."""
    rows = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "epoch" in row and "step" in row:
            rows.append(row)
    return rows
