"""Made-up scenes of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.contract import DataContract
from workflow_lib import plugins
from workflow_lib.data import Source


class TestScenes(DataContract):
    name = "scenes"

    @pytest.fixture
    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"name": self.name, "params": params, "shard_samples": 1000}


def opened(task: str) -> Source:
    plugin = plugins.load("data", "scenes")
    params = plugin.Params(task=task)
    source: Source = plugin.open_source(params, Path())
    assert plugin.known(params).classes == len(source.classes)
    return source


def test_labels_are_the_digits_in_the_masks() -> None:
    masks, labels = opened("segmentation"), opened("multilabel")
    assert masks.read_targets is not None
    for split, targets in labels.targets.items():
        rows = np.arange(len(targets))
        found = masks.read_targets(split, rows)
        np.testing.assert_array_equal(masks.read(split, rows), labels.read(split, rows))
        np.testing.assert_array_equal(np.stack([(found == 1 + digit).any((1, 2)) for digit in range(10)], 1), targets)
