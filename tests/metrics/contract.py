"""The laws of a metric. A new one, also one outside this repository, inherits them:

from tests.metrics.contract import MetricContract

class TestMine(MetricContract):
    metric = {"name": "mypackage.mine:Mine", "params": {"k": 5}}
    kind = "numbers"

`kind` is that of the targets: "classes" (the default), "labels", "numbers", "masks" or "tokens".
"""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

import pytest
import torch

from workflow_lib.config.measures import Metric
from workflow_lib.data import ModelSpec
from workflow_lib.metrics.own import Measures

SAMPLES = 60
IGNORED = 255  # class of the pixels of a mask that are not counted
TASKS = {
    "classes": "classification",
    "labels": "multilabel",
    "numbers": "regression",
    "masks": "segmentation",
    "tokens": "language",
}


def measures(kind: str, *metrics: Any, outputs: int = 6) -> Measures:
    """Return the metrics of a task with targets of this kind."""
    spec = ModelSpec((1,), outputs, TASKS[kind])
    return Measures([Metric.model_validate(metric) for metric in metrics], spec, [1.0] * outputs, [2.0] * outputs)


def batch(kind: str, outputs: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of a model for samples, float32 [n, outputs, ...], and targets; the same in each call."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(SAMPLES, *shape, generator=generator)

    def numbers(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(below, (SAMPLES, *shape), generator=generator)

    if kind == "numbers":
        targets = random(outputs)
        return targets + 0.5 * random(outputs), targets
    if kind == "masks":
        return random(outputs, 4, 4), torch.where(numbers(5, 4, 4) == 0, IGNORED, numbers(outputs, 4, 4))
    if kind == "tokens":
        return random(5, outputs), numbers(outputs, 5)
    return random(outputs), numbers(2, outputs) if kind == "labels" else numbers(outputs)


def over(found: Measures, outputs: torch.Tensor, targets: torch.Tensor, size: int) -> dict[str, float | None]:
    """Return the values over batches of this size; the batches are measured in inference mode, as in a validation."""
    found.reset()
    for first in range(0, len(outputs), size):
        with torch.inference_mode():
            part = found.contribution(outputs[first : first + size], targets[first : first + size])
        found.add(part)
    return found.values()


class MetricContract:
    """Every test here must hold for the `metric`, written as in `training.metrics`, and targets of the `kind`."""

    metric: ClassVar[str | dict[str, Any]]
    kind: ClassVar[str] = "classes"
    outputs: ClassVar[int] = 6

    @pytest.fixture
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        return batch(self.kind, self.outputs)

    def made(self) -> Measures:
        return measures(self.kind, self.metric, outputs=self.outputs)

    def test_the_direction_is_known(self) -> None:
        assert Metric.model_validate(self.metric).maximize in (True, False)

    def test_the_value_is_a_number_that_does_not_depend_on_the_size_of_batches(
        self, pair: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        found = self.made()
        (whole,) = over(found, *pair, SAMPLES).values()
        assert whole is not None
        assert math.isfinite(whole)
        for size in (1, 7, 32):
            assert list(over(found, *pair, size).values()) == pytest.approx([whole], rel=1e-4, abs=1e-5)

    def test_the_state_comes_back_after_any_batch(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        outputs, targets = pair
        straight = over(self.made(), outputs, targets, 10)
        for stop in range(0, SAMPLES, 10):
            first, second = self.made(), self.made()
            for start in range(0, stop, 10):
                first.add(first.contribution(outputs[start : start + 10], targets[start : start + 10]))
            tensors, rest = first.save()
            second.load({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(rest)))
            for start in range(stop, SAMPLES, 10):
                second.add(second.contribution(outputs[start : start + 10], targets[start : start + 10]))
            assert second.values() == straight
            assert over(first, outputs, targets, 10) == straight, "reset() forgets all batches"
