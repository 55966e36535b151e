"""Checks of numbers of epochs and steps that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from workflow_lib.config.length import Length, warmup_steps
from workflow_lib.config.messages import shown
from workflow_lib.config.optimization import Schedule, Step
from workflow_lib.config.run import Training
from workflow_lib.config.yaml import KeyPath
from workflow_lib.text import count


def length_problems(training: Training, schedule: Schedule) -> Iterator[tuple[KeyPath, str]]:
    """Yield the problems of numbers of epochs and steps that can be seen without the data."""
    if training.epochs is None and training.max_steps is None:
        yield ("training", "epochs"), "nothing ends the training; give training.epochs or training.max_steps"
    if schedule.warmup_epochs and schedule.warmup_steps is not None:
        yield (
            ("schedule", "warmup_steps"),
            f"{schedule.warmup_steps} steps, and schedule.warmup_epochs={schedule.warmup_epochs:g}; keep one of them",
        )
    elif training.epochs is not None and schedule.warmup_epochs > training.epochs:
        yield (
            ("schedule", "warmup_epochs"),
            f"the warm-up ({schedule.warmup_epochs:g} epochs) is longer than the training"
            f" (training.epochs={training.epochs}); allowed: at most training.epochs",
        )
    elif training.max_steps is not None and (schedule.warmup_steps or 0) > training.max_steps:
        yield (
            ("schedule", "warmup_steps"),
            f"the warm-up ({schedule.warmup_steps} steps) is longer than the training"
            f" (training.max_steps={training.max_steps}); allowed: at most training.max_steps",
        )
    if isinstance(schedule, Step) and (schedule.every_epochs is None) == (schedule.every_steps is None):
        yield (
            ("schedule", "every_steps"),
            f"{shown(schedule.every_steps)}, and schedule.every_epochs={shown(schedule.every_epochs)};"
            " give one of them, and null or nothing for the other",
        )


def warmup_problem(schedule: Schedule, length: Length) -> tuple[KeyPath, str] | None:
    """Return the problem of a warm-up with a training of this length, or None."""
    setting = "warmup_epochs" if schedule.warmup_steps is None else "warmup_steps"
    steps = warmup_steps(schedule, length.steps_per_epoch)
    if steps <= length.total:
        return None
    return (
        ("schedule", setting),
        f"the warm-up ({count(steps, 'step')}) is longer than the training; allowed: at most"
        f" {count(length.total, 'step')}",
    )
