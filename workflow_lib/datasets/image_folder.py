"""Images, with a folder for each class, optionally in folders train, val and test.

flowers/rose/1.jpg, flowers/tulip/x/2.png           the splits are drawn
flowers/train/rose/1.jpg, flowers/test/rose/7.jpg   the folders are the splits; a missing one is drawn from train

Classes are the names of the folders, sorted; images can be at any depth in them. Every image is decoded once before
the first shard is written, so that damage is found early.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workflow_lib.datasets._images import KINDS, ImageSettings, Size, decode, pixels, size_of
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts
from workflow_lib.plugins.checksums import Checksums
from workflow_lib.text import count

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source, SourceFile
    from workflow_lib.data.inputs import Named

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LIKE_IMAGES = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "photos", "pictures", "data", "input", "inputs")
)
LIKE_ANNOTATIONS = frozenset(
    ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation", "segmentations", "groundtruth",
     "gt", "target", "targets", "bbox", "bboxes", "boxes", "trimaps", "xmls", "metadata")
)  # fmt: skip


class Params(ImageSettings, Checksums):
    """Settings of the folder, and size and colours of the inputs."""

    path: Path = Field(description="folder, relative to the project's root")


def known(params: Params) -> DatasetFacts:
    """Return the kind, size and channels of the inputs."""
    return DatasetFacts("images", size=params.shape, channels=3 if params.channels == "rgb" else 1)


def look(params: Params, root: Path) -> DatasetFacts:
    """Return facts from the names of the folders and an image of each split. Raises DataError if they do not fit."""
    from workflow_lib.datasets._folder import files_below, split_folders

    found: dict[str, tuple[str, ...]] = {}
    size = params.shape
    for split, folder in split_folders(root / params.path).items():
        classes = [path for path in _class_folders(folder) if split == "train" or any(files_below(path))]
        found[split] = tuple(path.name for path in classes)
        _check_number(folder, found[split], split)
        _check_classes(folder, found[split], found["train"])
        if (image := next((file for path in classes for file in files_below(path)), None)) is not None:
            _check_suffix(image)
            size = size or size_of(_decode(image, params))
    return replace(known(params), classes=len(found["train"]), size=size)


def open_source(params: Params, root: Path) -> Source:
    """Return the images of the folder, each of which was decoded once."""
    import numpy as np

    from workflow_lib.data import SPLITS, Source, content_digest
    from workflow_lib.datasets._folder import split_folders

    params.verify(root / params.path)
    found = {split: _classes(folder, split) for split, folder in split_folders(root / params.path).items()}
    classes = tuple(found["train"])
    number_of = {name: number for number, name in enumerate(classes)}
    for split, folders in found.items():
        _check_classes(root / params.path / split, tuple(folders), classes)
    images = {split: [path for paths in folders.values() for path in paths] for split, folders in found.items()}
    paths = [path for of_split in images.values() for path in of_split]
    decoded = checked(paths, params)
    shape = params.shape or common_size(decoded)
    files = tuple(file for file, _ in decoded)
    digests = {file.path: file.digest for file in files}
    channels = 3 if params.channels == "rgb" else 1

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(rows), *shape, channels), np.uint8)
        for place, row in enumerate(rows):
            inputs[place] = _pixels(images[split][row], params, shape)
        return np.moveaxis(inputs, 3, 1)

    return Source(
        targets={
            split: np.array([number_of[name] for name, paths in found[split].items() for _ in paths], np.int64)
            for split in SPLITS
            if split in found
        },
        read=read,
        is_thread_safe=True,
        classes=classes,
        scale=255.0,
        files=files,
        content=content_digest(np.array([file.digest for file in files])),  # the order of the files counts
        row_digests={split: [digests[path] for path in paths] for split, paths in images.items()},
        row_name=lambda split, row: str(images[split][row]),
        sample_names=lambda split, rows: {
            "file": [images[split][row].relative_to(root / params.path).as_posix() for row in rows.tolist()]
        },
    )


def open_inputs(params: ImageSettings, path: Path, manifest: Manifest) -> Inputs:
    """Return an image, or the images of a folder at any depth, scaled as in the training; each is named by its file."""
    import numpy as np

    from workflow_lib.data import Inputs
    from workflow_lib.datasets._folder import files_below, map_files

    is_folder = path.is_dir()
    paths = list(files_below(path)) if is_folder else [path]
    for file in paths:
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(f"{file}: is not an image ({', '.join(SUFFIXES)}); convert it, or move it away")
    if not paths:
        raise DataError(f"{path}: has no images ({', '.join(SUFFIXES)})")
    _, height, width = manifest.input_shape

    def scaled(file: Path) -> np.ndarray:
        if params.shape is None and (size := size_of(_decode(file, params))) != (height, width):
            raise DataError(
                f"{file}: is {size[0]} x {size[1]} (height x width), but the model was trained on images of {height} x "
                f"{width}, and data.params.size does not scale them; give images of this size"
            )
        return _pixels(file, params, (height, width))

    def read(size: int) -> Iterator[Named]:
        for start in range(0, len(paths), size):
            files = paths[start : start + size]
            names = [(file.relative_to(path) if is_folder else Path(file.name)).as_posix() for file in files]
            yield {"file": names}, np.ascontiguousarray(np.moveaxis(np.stack(map_files(scaled, files)), 3, 1))

    return Inputs(read=read, samples=len(paths))


def _classes(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return the images of each class of a split, by name; only train must have all classes."""
    from workflow_lib.datasets._folder import files_below
    from workflow_lib.datasets._notation import folded

    classes = {path.name: list(files_below(path, (folder.resolve(),))) for path in _class_folders(folder)}
    if split != "train":
        classes = {name: paths for name, paths in classes.items() if paths}
    _check_number(folder, classes, split)
    for name, paths in classes.items():
        if not paths:
            raise DataError(f"{folder / name}: the folder of this class has no images; fill it, or remove it")
        for path in paths:
            _check_suffix(path)
    _warn_of_equal_folders(folder, classes)
    by_fold: dict[str, str] = {}
    for name in classes:
        if (other := by_fold.setdefault(folded(name), name)) != name:
            log.warning("%s: `%s` and `%s` are two classes; merge the folders if they are one", folder, other, name)
    return classes


def _class_folders(folder: Path) -> list[Path]:
    """Return the folders of the classes of a split. Raises DataError for an image beside them."""
    from workflow_lib.datasets._folder import entries

    for path in entries(folder):
        if path.suffix.lower() in SUFFIXES:
            raise DataError(f"{path}: is beside the folders of the classes; move it into the folder of its class")
    found = [path for path in entries(folder) if path.is_dir()]
    _check_annotations(folder, [path.name for path in found])
    return found


def _check_number(folder: Path, classes: Collection[str], split: str) -> None:
    if len(classes) < (2 if split == "train" else 1):
        listing = f"only {', '.join(classes)}" if classes else "none"
        raise DataError(f"{folder}: needs folders for at least two classes; it has {listing}")


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: is not an image ({', '.join(SUFFIXES)}); convert it, or move it away")


def _check_annotations(folder: Path, names: Iterable[str]) -> None:
    """Reject a folder of images beside one of annotations: they would become two classes."""
    words = {re.sub(r"[^a-z]", "", name.casefold()): name for name in names}
    images, annotations = (sorted(words.keys() & known) for known in (LIKE_IMAGES, LIKE_ANNOTATIONS))
    if images and annotations:
        raise DataError(
            f"{folder}: `{words[images[0]]}` and `{words[annotations[0]]}` look like images and their annotations, not "
            "like classes; put the images into a folder for each class, and move the annotations away"
        )


def _warn_of_equal_folders(folder: Path, classes: dict[str, list[Path]]) -> None:
    """Warn if all classes have the same sub-folders and no image directly in them: these may be the classes."""
    below = [{path.relative_to(folder / name).parts[:-1][:1] for path in paths} for name, paths in classes.items()]
    if len(below[0]) > 1 and () not in below[0] and all(folders == below[0] for folders in below):
        inner = ", ".join(sorted(name for (name,) in below[0])[:5])
        log.warning(
            "%s: its classes (%s) have the same sub-folders (%s) and no images directly in them: are they the classes?",
            folder, ", ".join(list(classes)[:5]), inner,
        )  # fmt: skip


def _check_classes(folder: Path, here: tuple[str, ...], classes: tuple[str, ...]) -> None:
    for name in sorted(set(here) - set(classes)):
        raise DataError(f"{folder / name}: is not a class of train; train must have every class")


def checked(paths: Sequence[Path], params: ImageSettings) -> list[tuple[SourceFile, Size]]:
    """Decode the images; return the files with their digests, and height and width of each image."""
    from workflow_lib.data import SourceFile
    from workflow_lib.datasets._folder import map_files

    def check(path: Path) -> tuple[SourceFile, Size, int]:
        file, image = SourceFile.of(path), _decode(path, params)
        return file, size_of(image), image.info["images"]

    found = map_files(check, paths)
    warn_of_several([(file.path, images) for file, _, images in found])
    return [(file, size) for file, size, _ in found]


def warn_of_several(images: Sequence[tuple[Path, int]]) -> None:
    """Warn of files that contain several images; `images` has the number of those in each file."""
    if several := [path for path, number in images if number > 1]:
        log.warning(
            "%d of %s contain several images, as phones and 3D cameras write them (MPO), such as %s: the first is used",
            len(several), count(len(images), "file"), several[0],
        )  # fmt: skip


def common_size(checked: list[tuple[SourceFile, Size]]) -> Size:
    """Return height and width of all images. Raises DataError if they differ."""
    first, size = checked[0]
    for file, other in checked:
        if other != size:
            raise DataError(
                f"{file.path}: is {other[0]} x {other[1]} (height x width), but {first.path} is {size[0]} x {size[1]}; "
                "set data.params.size to scale all images to one size"
            )
    return size


def _pixels(path: Path, params: ImageSettings, shape: Size) -> np.ndarray:
    """Return the image as uint8 [height, width, channels]."""
    return pixels(content_of(path), str(path), params, shape)


def _decode(path: Path, params: ImageSettings) -> Any:
    return decode(content_of(path), str(path), params)


def content_of(path: Path) -> bytes:
    """Return the bytes of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a readable {KINDS} image ({error})") from error
