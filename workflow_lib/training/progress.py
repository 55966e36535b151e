"""Display of the progress: a bar on a terminal, plain lines in a log file, events for `everstep status`."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from workflow_lib.config.length import Length
from workflow_lib.store.events import EventLog
from workflow_lib.text import duration
from workflow_lib.training.pace import Pace

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)

EVERY_S = {"bar": 0.25, "line": 10.0}
YOUNG_S, OLD_EVERY_S = 600.0, 60.0  # after ten minutes, the log gets a line a minute

PLACE = ("epoch", "step", "lr")  # not metrics of a validation


class ProgressDisplay:
    """Shows the progress at most a few times a second; in between, a step costs one read of the clock."""

    def __init__(
        self, length: Length, *, is_counted_in_steps: bool, batch_size: int, step: int, events: EventLog
    ) -> None:
        self._length, self._is_counted_in_steps = length, is_counted_in_steps
        self._total = length.total
        self._batch_size = batch_size
        self._events = events
        self._first = self._last = (step, time.monotonic())
        self._began = self._logged_at = self._printed_at = time.monotonic()
        self._pace = Pace(step, self._began)
        self._bar = self._new_bar(step) if sys.stderr.isatty() else None
        self._next = time.monotonic()

    def update(self, step: int, loss_sum: torch.Tensor, samples: int) -> None:
        """Show that ``step`` steps are done; ``loss_sum`` is that of the ``samples`` since the last validation."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S["bar" if self._bar else "line"]
        loss = loss_sum.item() / max(samples, 1)
        speed = self._speed(step, now)
        left_s = self._left_s(step, now)
        eta = "?" if left_s is None else duration(left_s)
        epoch = min(step // self._length.steps_per_epoch + 1, self._length.epochs)
        if self._bar:
            steps, epochs = f"step {step}/{self._total}", f"epoch {epoch}/{self._length.epochs}"
            place = steps if self._is_counted_in_steps else epochs
            text = f"{place}  loss {loss:.4f}  {speed:,.0f} samples/s  ETA {eta}"
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        if now - self._logged_at >= EVERY_S["line"]:
            self._logged_at = now
            self._events.append(
                "progress",
                step=step,
                steps=self._total,
                epoch=epoch,
                loss=loss,
                samples_per_s=round(speed, 1),
                left_s=left_s,
            )
            self._events.shorten()
            is_due = now - self._began <= YOUNG_S or now - self._printed_at >= OLD_EVERY_S
            if not self._bar and is_due:
                self._printed_at = now
                logger.info(
                    "epoch %d/%d  step %d/%d  loss %.4f  %s samples/s  ETA %s",
                    epoch, self._length.epochs, step, self._total, loss, f"{speed:,.0f}", eta,
                    extra={"to_events": False},  # the event above says it
                )  # fmt: skip

    def validated(self, row: dict[str, float | None], *, is_best: bool) -> None:
        """Show the metrics of a validation."""
        metrics = "  ".join(
            f"{name} {value:.4f}" for name, value in row.items() if name not in PLACE and value is not None
        )
        step, now = int(row["step"] or 0), time.monotonic()
        speed = self._speed(step, now)
        place = f"epoch {row['epoch']}/{self._length.epochs}"
        if self._is_counted_in_steps:
            place = f"step {row['step']}/{self._total}  epoch {row['epoch']}"
        line = f"{place}  {metrics}{'  best' if is_best else ''}"
        if self._bar:
            self._bar.console.print(line)
        else:
            logger.info("%s", line)
        left_s = self._left_s(step, now)
        self._events.append("epoch", **row, steps=self._total, samples_per_s=round(speed, 1), left_s=left_s)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar:
            self._bar.stop()

    def _left_s(self, step: int, now: float) -> float | None:
        """Return the estimated seconds to the end, in tenths; None before the first step."""
        self._pace.add(step, now)
        left_s = self._pace.left_s(self._total, now)
        return None if left_s is None else round(left_s, 1)

    def _speed(self, step: int, now: float) -> float:
        """Return the samples per second, measured over at least a second once the training is that old."""
        last_step, last_time = self._last
        speed = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        if now - last_time > 1.0:
            self._last = (step, now)
        return speed

    def _new_bar(self, step: int) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
        )
        bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
        bar.add_task("starting", total=self._total, completed=step)
        bar.start()
        return bar
