"""Settings for the arrays of an `.npz` file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from workflow_lib.data import SPLITS
from workflow_lib.datasets._archive import Archive
from workflow_lib.errors import DataError
from workflow_lib.start.guess import Guess, counts_of, of_classes

# names of arrays in other libraries: of a split, and of its inputs or targets
LIKE_SPLITS = {
    "": "train",
    "tr": "train",
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
LIKE_KINDS = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "input", "inputs", "features"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets", "class", "classes"), "labels"),
    **dict.fromkeys(("mask", "masks"), "masks"),
}


def of_npz(path: Path) -> Guess:
    """Return settings for an `.npz` file. Raises DataError if it has no arrays that are read."""
    with closing(Archive(path)) as archive:
        masks = "train_masks" in archive.keys
        if "train_images" not in archive.keys or not (masks or "train_labels" in archive.keys):
            raise DataError(
                f"--data {path}: has {', '.join(sorted(archive.keys)) or 'no arrays'}; needed: train_images, and "
                f"train_labels or train_masks{_renaming(path, sorted(archive.keys))}"
            )
        images = {split: archive.member(f"{split}_images") for split in SPLITS if f"{split}_images" in archive.keys}
        numbers, shape = {split: len(member) for split, member in images.items()}, images["train"].shape[1:]
        targets = None if masks else archive.member("train_labels")
        if not min(numbers["train"], len(shape)) or (targets is not None and not len(targets)):
            raise DataError(f"--data {path}: train_images has shape {images['train'].shape}; needed: images")
        labels = None if targets is None else targets.take(np.arange(len(targets)))
    is_many = labels is not None and labels.ndim == 2 and labels.shape[1] > 1
    task = "segmentation" if masks else "multilabel" if is_many else "classification"
    smallest = min(shape[:2])
    model = "unet" if masks else "mlp" if smallest < 4 else "cnn" if smallest <= 32 else "resnet"  # a cnn halves them
    params = {"path": str(path)} | ({} if task == "classification" else {"task": task})
    made = Guess(
        {"name": "npz", "params": params}, {"model": {"name": model}, "training": {"epochs": 30, "batch_size": 128}}
    )
    made.fit_batches(numbers["train"])
    made.found = [f"images of {' x '.join(map(str, shape))}: {task}"]
    made.found.append(", ".join(f"{number:,} {split}" for split, number in numbers.items()))
    if task == "classification" and labels is not None:
        values, counts = np.unique(labels, return_counts=True)
        classes = {str(value): int(n) for value, n in zip(values, counts, strict=True)}
        made.found.append(counts_of(classes))
        made.odd += of_classes(classes)
    return made


def _renaming(path: Path, keys: Sequence[str]) -> str:
    """Return the code that saves the arrays with the names that are read, to end a message with; empty if unknown."""
    names = {_name_here(key): key for key in keys}
    if not {"train_images"} < names.keys() & {"train_images", "train_labels", "train_masks"} or len(names) < len(keys):
        return ""
    arrays = ", ".join(f'{name}=d["{key}"]' for name, key in names.items())
    return f'; rename them: d = numpy.load("{path}"); numpy.savez("{path.with_stem(path.stem + "-renamed")}", {arrays})'


def _name_here(key: str) -> str:
    """Return the name that is read for an array that another library calls `x_train` or `train_data`; else its own."""
    words = re.findall("[a-z]+", key.lower())
    kinds = [LIKE_KINDS[word] for word in words if word in LIKE_KINDS]
    splits = [LIKE_SPLITS[word] for word in words if word in LIKE_SPLITS] or ["train"]
    return f"{splits[0]}_{kinds[0]}" if len(kinds) == len(splits) == 1 and len(words) <= 2 else key
