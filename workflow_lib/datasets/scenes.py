"""Made-up scenes: images of four handwritten digits, with a class for each pixel or a label for each digit.

2,700 images of 16x16 pixels, made of the digits that are part of scikit-learn; no digit is in images of two splits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.plugins import DatasetFacts, Section, Task

if TYPE_CHECKING:
    from workflow_lib.data import Source

# by split: the digits that its images are made of, and the number of images
PARTS = {"train": (0, 1200, 2000), "val": (1200, 1400, 300), "test": (1400, 1797, 400)}
INK = 4  # a pixel above this value, of 16, belongs to its digit
DIGITS = tuple(str(digit) for digit in range(10))


class Params(Section):
    """Settings of the scenes."""

    task: Literal["segmentation", "multilabel"] = Field(
        "segmentation",
        description="segmentation: the digit, or the background, of each pixel; multilabel: the digits in the image",
    )


def task(params: Params) -> Task:
    """Return the task, which is a setting."""
    return params.task


def known(params: Params) -> DatasetFacts:
    """Return all facts."""
    samples = PARTS["train"][2]
    return DatasetFacts("images", size=(16, 16), channels=1, classes=len(_classes(params)), training_samples=samples)


def open_source(params: Params, root: Path) -> Source:
    """Return the images of all splits, with their masks or labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    from workflow_lib.data import Source, content_digest

    digits, random = load_digits(), np.random.default_rng(0)
    images, masks, labels = {}, {}, {}
    for split, (first, last, count) in PARTS.items():
        chosen = random.integers(first, last, (count, 2, 2))
        pixels = digits.images[chosen].swapaxes(2, 3).reshape(count, 1, 16, 16)
        numbers = digits.target[chosen]
        images[split] = pixels.astype(np.uint8)
        masks[split] = np.where(pixels[:, 0] > INK, 1 + numbers.repeat(8, 1).repeat(8, 2), 0).astype(np.uint8)
        labels[split] = np.eye(10, dtype=np.uint8)[numbers.reshape(count, 4)].max(1)
    has_masks = params.task == "segmentation"
    return Source(
        task=params.task,
        targets={split: np.empty((len(of), 0), np.int64) for split, of in masks.items()} if has_masks else labels,
        read=lambda split, rows: images[split][rows],
        read_targets=(lambda split, rows: masks[split][rows]) if has_masks else None,
        is_thread_safe=True,
        classes=_classes(params),
        scale=16,
        content=content_digest(*images.values(), *masks.values()),
    )


def _classes(params: Params) -> tuple[str, ...]:
    return ("background", *DIGITS) if params.task == "segmentation" else DIGITS
