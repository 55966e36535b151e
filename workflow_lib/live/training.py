"""The progress of a training, read from the files of its workspace while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_lib import files
from workflow_lib.plan import frozen
from workflow_lib.store import attempts, layout
from workflow_lib.store.events import Follower, last_event

RECENT_BYTES = 1 << 13
WARNINGS = ("warning", "error", "critical")
PROGRESS = ("progress", "epoch")


class Training:
    """A training that is followed: the values of its last event, and its new warnings.

    `epoch` counts from 1; `left_s` and the values of metrics are None until they are known.
    """

    def __init__(self, reference: str, work: Path) -> None:
        self._run = frozen.run_path(reference, work).parent
        settings = files.read_json(layout.run_config(work, self._run.name))["training"]
        self.metric: str = settings["select_metric"]
        self.epochs: int | None = settings["epochs"]
        self._work = work
        self._followers: dict[Path, Follower] = {path: Follower(path, last_bytes=0) for path in self._files()}
        self.epoch = self.step = 0
        self.steps: int | None = None
        self.loss: float | None = None
        self.value: float | None = None
        self.samples_per_s: float | None = None
        self._ends_at: float | None = None  # estimated, by time.monotonic
        for path in self._followers:
            if (event := last_event(path, PROGRESS, RECENT_BYTES)) is not None:
                self._take(event)
        self.samples_per_s = self._ends_at = None
        self._is_finished = False

    def _files(self) -> list[Path]:
        return [layout.events_file(path) for path in layout.workspaces(self._work, self._run.name)]

    def update(self) -> list[str]:
        """Read the new events and return the new warnings."""
        warnings = []
        for path in self._files():
            for event in self._followers.setdefault(path, Follower(path)).new():
                if event.get("kind") in PROGRESS:
                    self._take(event)
                elif event.get("kind") == "log" and event.get("level") in WARNINGS:
                    warnings.append(str(event.get("message")))
        return warnings

    @property
    def attempt(self) -> attempts.Attempt | None:
        """The record of the newest attempt, or None before the first one."""
        found = [record for path in self._files() for record in attempts.list_attempts(path.parent)]
        return max(found, key=lambda record: record.began, default=None)

    @property
    def state(self) -> str:
        """`training` while an attempt runs, `trained` if the newest one finished the run, else `waiting`."""
        if self._is_finished:
            return "trained"
        newest = self.attempt
        self._is_finished = newest is not None and newest.reason == "finished"
        return "trained" if self._is_finished else "training" if newest and newest.is_presumed_alive() else "waiting"

    def is_running(self) -> bool:
        """Return True if the training has begun and computes steps."""
        return self.steps is not None and self.state == "training"

    def _take(self, event: Mapping[str, Any]) -> None:
        self.step, self.steps = event["step"], event["steps"]
        self.epoch = int(event["epoch"])
        self.samples_per_s = event["samples_per_s"]
        self.loss = event.get("loss", event.get("train_loss"))
        self.value = event.get(self.metric, self.value)
        left_s = event.get("left_s")
        self._ends_at = None if left_s is None else time.monotonic() + left_s

    @property
    def left_s(self) -> float | None:
        """The estimated seconds that are left, which pass also between two events."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    @property
    def place(self) -> str:
        """The epoch or, if a training has no epochs, the step."""
        if self.steps is None:
            return "starting"
        return f"epoch {self.epoch}/{self.epochs}" if self.epochs else f"step {self.step:,}/{self.steps:,}"
