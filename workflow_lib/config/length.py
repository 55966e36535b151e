"""The length of a training: its optimizer steps, and those after which it is validated.

A number of steps takes the place of a number of epochs that is not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_lib.config.optimization import Schedule
    from workflow_lib.config.run import Training

STEPS_FOR_EPOCHS = {"training": ("max_steps", "epochs"), "schedule": ("every_steps", "every_epochs")}
EPOCH_DIGITS = 6  # after the decimal point, of a place within an epoch


def without_epochs(section: str, settings: Any) -> Any:
    """Return the settings of a section with null for the epochs, if a number of steps is given and no epochs are."""
    steps, epochs = STEPS_FOR_EPOCHS[section]
    if isinstance(settings, dict) and settings.get(steps) is not None and epochs not in settings:
        return {**settings, epochs: None}
    return settings


def is_counted_in_steps(training: Training) -> bool:
    """Return True if the training ends or is validated after a number of steps, which may lie within an epoch."""
    return training.max_steps is not None or training.validate_every_steps is not None


@dataclass(frozen=True)
class Length:
    """Numbers of optimizer steps: of an epoch, of the training, and from one validation to the next."""

    steps_per_epoch: int
    total: int
    between_validations: int

    @classmethod
    def of(cls, training: Training, steps_per_epoch: int) -> Length:
        """Return the length of a training; of `epochs` and `max_steps`, the one that ends first counts."""
        ends = (training.max_steps, training.epochs and training.epochs * steps_per_epoch)
        total = min(end for end in ends if end is not None)
        return cls(steps_per_epoch, total, training.validate_every_steps or steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Epochs that are begun, of which the last may be incomplete."""
        return -(-self.total // self.steps_per_epoch)

    @property
    def validations(self) -> int:
        """Validations of a training that does not end early."""
        return -(-self.total // self.between_validations)

    def is_validated(self, step: int) -> bool:
        """Return True if a validation follows this step. The last step is always validated."""
        return step == self.total or step % self.between_validations == 0

    def next_validation(self, step: int) -> int:
        """Return the first step after this one that a validation follows."""
        return min(self.total, (step // self.between_validations + 1) * self.between_validations)

    def epoch_at(self, step: int) -> float:
        """Return the number of epochs after this step: whole as an int, so that files show it without a fraction."""
        whole, rest = divmod(step, self.steps_per_epoch)
        return whole if rest == 0 else round(step / self.steps_per_epoch, EPOCH_DIGITS)


def warmup_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the warm-up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(schedule.warmup_epochs * steps_per_epoch)
