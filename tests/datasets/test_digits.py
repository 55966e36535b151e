"""The data set `digits`."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from tests.datasets.contract import DataContract
from workflow_lib.data import Source


class TestDigits(DataContract):
    name = "digits"

    def test_the_images_are_those_of_scikit_learn(self, source: Source) -> None:
        digits = load_digits()
        images = source.read("train", np.arange(len(digits.target)))
        np.testing.assert_array_equal(images[:, 0], digits.images)
        np.testing.assert_array_equal(source.targets["train"], digits.target)
        assert (images / source.scale).max() == 1
