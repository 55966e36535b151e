"""Images in one npz file of the MedMNIST layout.

train_images    numbers (n, height, width) or (n, height, width, channels), 1 or 3 channels
train_labels    class numbers from 0, (n,) or (n, 1)
val_images, val_labels, test_images, test_labels    optional; a missing pair is drawn from train

`data.params.task: multilabel` takes labels (n, classes) of 0 and 1; `segmentation` takes class numbers from 0 for each
pixel (n, height, width) in train_masks instead of train_labels, and 255 for a pixel to ignore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums
from workflow_lib.plugins.section import ADDED

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.data.inputs import Named
    from workflow_lib.datasets._archive import Archive, Member

SAMPLED = 1 << 16  # fractions of a block that are compared as float32


class Params(Checksums):
    """Settings of the file and names of its classes."""

    path: Path = Field(description="npz file, relative to the project's root")
    classes: tuple[str, ...] | None = Field(None, min_length=2, description="names of the classes; null: their numbers")
    task: Literal["classification", "multilabel", "segmentation"] = Field(
        "classification",
        description="classification: one class for each image; multilabel: several; segmentation: one for each pixel",
        json_schema_extra=ADDED,
    )


def task(params: Params) -> Task:
    """Return the task, which is a setting."""
    return params.task


def known(params: Params) -> DatasetFacts:
    """Return the kind of inputs, and the number of classes if they have names."""
    return DatasetFacts("images", classes=len(params.classes) if params.classes else None)


def look(params: Params, root: Path) -> DatasetFacts:
    """Return facts from the headers of the file. Raises DataError for keys, shapes and types that cannot be used."""
    from workflow_lib.datasets._archive import Archive

    with closing(Archive(root / params.path)) as archive:
        images, _ = _members(archive, params.task)
        height, width, channels = (*images["train"].shape[1:], 1)[:3]
        return replace(
            known(params),
            size=(height, width),
            channels=channels,
            samples=len(images["train"]) if len(images) == 1 else None,
        )


def open_source(params: Params, root: Path) -> Source:
    """Return the images of the file, after all of it was read and checked."""
    from workflow_lib.datasets._archive import Archive

    params.verify(root / params.path)
    with ExitStack() as resources:
        archive = resources.enter_context(closing(Archive(root / params.path)))
        source = _checked_source(archive, params)
        return replace(source, close=resources.pop_all().close)


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the images of an npz file, with or without labels, of the type and shape of those that were trained on.

    The keys are `images` or those of the training (`test_images`); a file with a single array may have any key.
    """
    import numpy as np

    from workflow_lib.data import Inputs
    from workflow_lib.datasets._archive import Archive

    with ExitStack() as resources:
        archive = resources.enter_context(closing(Archive(path)))
        keys = [key for key in archive.keys if key == "images" or key.endswith("_images")]
        keys = keys or list(archive.keys if len(archive.keys) == 1 else ())
        if not keys:
            there = ", ".join(archive.keys) or "none"
            raise DataError(f"{path}: has no key `images` (there are: {there})")
        members = {key: _images(archive, key) for key in keys}
        for member in members.values():
            _check_trained_type(member, manifest)

        def read(size: int) -> Iterator[Named]:
            for key, member in members.items():
                for first, block in member.blocks(0, len(member)):
                    rows = np.arange(first, first + len(block))
                    yield {"key": [key] * len(rows), "row": rows}, np.ascontiguousarray(as_stored(block))

        return Inputs(read=read, samples=sum(map(len, members.values())), close=resources.pop_all().close)


def _check_trained_type(images: Member, manifest: Manifest) -> None:
    """Reject bytes (0 to 255) for a model of fractions or booleans, and the other way round: both would be images."""
    is_byte, was_byte = images.dtype == "uint8", (manifest.dtype, manifest.scale) == ("uint8", 255.0)
    is_bool, was_bool = images.dtype == "bool", (manifest.dtype, manifest.scale) == ("uint8", 1.0)
    if (is_byte, is_bool) != (was_byte, was_bool):
        was = "uint8" if was_byte else "bool" if was_bool else "numbers other than uint8"
        raise DataError(f"{images.where}: has type {images.dtype}; the model was trained on {was}")


def _checked_source(archive: Archive, params: Params) -> Source:
    import numpy as np

    from workflow_lib.data import Source, SourceFile

    file = SourceFile.of(archive.path)
    images, members = _members(archive, params.task)
    if params.task == "segmentation":
        labels = {split: np.empty((len(member), 0), np.int64) for split, member in members.items()}
        classes = _mask_classes(members, params.classes)
    elif params.task == "multilabel":
        labels = {split: _all_labels(member, len(params.classes or ())) for split, member in members.items()}
        classes = params.classes or tuple(map(str, range(labels["train"].shape[1])))
    else:
        labels = {split: _labels(member) for split, member in members.items()}
        classes = params.classes or _default_names(archive.path, labels["train"])
    for split in images:
        if params.task == "classification":
            _check_range(f"{archive.path}: key `{split}_labels`", labels[split], len(classes))
        _check_images(images[split])
    return Source(
        task=params.task,
        targets=labels,
        read_targets=(lambda split, rows: members[split].take(rows)) if params.task == "segmentation" else None,
        read=lambda split, rows: as_stored(images[split].take(rows)),
        classes=classes,
        scale=255.0 if images["train"].dtype == np.uint8 else 1.0,
        sample_names=lambda split, rows: {"key": [f"{split}_images"] * len(rows), "row": rows},
        files=(file,),
    )


def _all_labels(member: Member, names: int) -> np.ndarray:
    """Return the labels [n, classes]. Raises DataError for another value than 0 and 1, or another number of names."""
    import numpy as np

    from workflow_lib.data import first_true

    labels = member.take(np.arange(len(member)))
    if names not in (0, labels.shape[1]):
        raise DataError(f"{member.where}: has {labels.shape[1]} labels, and data.params.classes has {names} names")
    if (bad := ~np.isin(labels, (0, 1))).any():
        row = first_true(bad)
        raise DataError(f"{member.where}, row {row}: the label {labels[row][bad[row]][0]} is neither 0 nor 1")
    return labels.astype(np.uint8)


def _mask_classes(members: Mapping[str, Member], names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names of the classes, after reading every mask once. Raises DataError for a value without a class."""
    import numpy as np

    from workflow_lib.data import IGNORED, first_true

    largest = 0
    for member in members.values():
        for start, block in member.blocks(0, len(member)):
            bad = (block < 0) | (block > IGNORED)
            if names:
                bad |= (block >= len(names)) & (block != IGNORED)
            if bad.any():
                row = first_true(bad)
                allowed = (
                    f"allowed: 0 to {len(names or ()) - 1 if names else IGNORED - 1}, and {IGNORED} to ignore a pixel"
                )
                value = block[row][bad[row]][0]
                raise DataError(f"{member.where}, row {start + row}: the mask has the value {value}; {allowed}")
            largest = max(largest, int(np.where(block == IGNORED, 0, block).max()))
    return names or tuple(map(str, range(max(largest, 1) + 1)))


def _members(archive: Archive, task: Task) -> tuple[dict[str, Member], dict[str, Member]]:
    """Return the images and the labels of each split, with checked headers; their values are not read."""
    what = "masks" if task == "segmentation" else "labels"
    splits = ["train", *(s for s in ("val", "test") if {f"{s}_images", f"{s}_{what}"} & set(archive.keys))]
    images = {split: _images(archive, f"{split}_images") for split in splits}
    for member in images.values():
        _check_alike(member, images["train"])
    labels = {split: _label_member(archive, f"{split}_{what}", images[split], task) for split in splits}
    _check_keys(archive)
    return images, labels


def as_stored(images: np.ndarray) -> np.ndarray:
    """Return images [n, H, W] or [n, H, W, C] as [n, C, H, W]: uint8 stays, booleans become uint8, the rest float32."""
    import numpy as np

    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is rejected
        values = images.astype(np.uint8 if images.dtype in (np.uint8, np.bool_) else np.float32, copy=False)
    return np.moveaxis(values, 3, 1) if values.ndim == 4 else values[:, np.newaxis]


def _images(archive: Archive, key: str) -> Member:
    """Return the images of a key. Raises DataError for a shape that images cannot have."""
    member = archive.member(key)
    shape = member.shape
    if len(shape) not in (3, 4) or 0 in shape[1:] or (len(shape) == 4 and shape[3] not in (1, 3)):
        hint = "; the channels come last" if len(shape) == 4 and shape[1] in (1, 3) else ""
        raise DataError(
            f"{member.where}: shape {shape}; allowed: (n, height, width) or (n, height, width, 1 or 3){hint}"
        )
    if not len(member):
        raise DataError(f"{member.where}: has no images; leave the key out, or fill it")
    return member


def _check_alike(member: Member, train: Member) -> None:
    if (member.shape[1:], member.dtype) != (train.shape[1:], train.dtype):
        raise DataError(
            f"{member.where}: images are {member.dtype} {member.shape[1:]}, but those of train are "
            f"{train.dtype} {train.shape[1:]}; all images of a file must have one type and shape"
        )


def _label_member(archive: Archive, key: str, images: Member, task: Task) -> Member:
    """Return the labels or masks of a key. Raises DataError if they are not one for each image."""
    member, size = archive.member(key), images.shape[1:3]
    if task == "segmentation" and (member.shape[1:] != size or member.dtype.kind not in "bui"):
        given = f"{member.dtype} of shape {member.shape}"
        raise DataError(f"{member.where}: {given}; allowed: whole numbers of shape (n, {size[0]}, {size[1]})")
    if task == "multilabel" and len(member.shape) != 2:
        raise DataError(f"{member.where}: shape {member.shape}; allowed: (n, classes), 0 or 1 for each class")
    if task == "classification" and member.shape[1:] not in ((), (1,)):
        raise DataError(f"{member.where}: shape {member.shape}; allowed: (n,) or (n, 1), one class for each image")
    if len(member) != len(images):
        raise DataError(f"{member.where}: has {len(member)} labels for {len(images)} images; allowed: one for each")
    return member


def _labels(member: Member) -> np.ndarray:
    """Return the labels as int64 [n]. Raises DataError for a label that is not a whole number."""
    import numpy as np

    from workflow_lib.data import first_true

    labels = member.take(np.arange(len(member))).reshape(-1)
    if labels.dtype.kind == "f":
        for what, bad in (
            ("is not finite", ~np.isfinite(labels)),
            ("is not whole", labels != np.trunc(labels)),
            ("is out of range", np.abs(labels) >= 2**31),
        ):
            if bad.any():
                row = first_true(bad)
                raise DataError(f"{member.where}, row {row}: label {labels[row]} {what}; classes are numbered from 0")
    return labels.astype(np.int64)


def _default_names(path: Path, train: np.ndarray) -> tuple[str, ...]:
    """Return the numbers 0 to the largest label as names. Raises DataError for a label beyond the number of images."""
    from workflow_lib.data import numbering_hint

    if hint := numbering_hint(train):
        raise DataError(f"{path}: key `train_labels`: {hint}")
    largest, row = int(train.max()), int(train.argmax())
    if not 0 < largest < len(train):
        raise DataError(
            f"{path}: key `train_labels`, row {row}: the largest label is {largest} (of {len(train)} images); allowed: "
            f"at least two classes, numbered 0, 1, ... without gaps"
        )
    return tuple(str(number) for number in range(largest + 1))


def _check_range(where: str, labels: np.ndarray, classes: int) -> None:
    from workflow_lib.data import first_true, numbering_hint

    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        row, hint = first_true(bad), numbering_hint(labels)
        advice = f" ({hint})" if hint else ""
        raise DataError(f"{where}, row {row}: label {labels[row]} is out of range; allowed: 0 to {classes - 1}{advice}")


def _check_images(images: Member) -> None:
    """Read every image once, so that damage anywhere in the file is found before a shard is written."""
    import numpy as np

    from workflow_lib.data import first_true

    for start, block in images.blocks(0, len(images)):
        bad = ~np.isfinite(as_stored(block))
        if bad.any():
            raise DataError(f"{images.where}, row {start + first_true(bad)}: the image has NaN or infinite values")
        if images.dtype.kind in "iuf" and images.dtype.itemsize >= 4 and images.dtype != np.float32:
            _check_precision(images, block)


def _check_precision(images: Member, block: np.ndarray) -> None:
    """Reject values that float32 merges: whole numbers always, fractions only if many of them are merged."""
    from workflow_lib.data import merged_in_float32

    is_whole = images.dtype.kind in "iu"
    if is_whole and max(abs(int(block.max())), abs(int(block.min()))) <= 2**24:
        return
    values = block.reshape(-1) if is_whole else block.reshape(-1)[:SAMPLED]
    if (merged := merged_in_float32(values, tolerance=0.0 if is_whole else 0.05)) is not None:
        raise DataError(
            f"{images.where}: {merged[0]!r} and {merged[1]!r} are equal in float32, in which models compute; subtract "
            "a constant from the values or scale them, and save them as float32"
        )


def _check_keys(archive: Archive) -> None:
    """Reject a split with an unknown name: it would be ignored, and a split drawn from train instead."""
    known = {f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels", "masks")}
    for key in archive.keys:
        if key not in known and key.casefold().endswith(("_images", "_labels", "_masks")):
            raise DataError(f"{archive.path}: the key `{key}` belongs to no split (train, val or test); rename it")
