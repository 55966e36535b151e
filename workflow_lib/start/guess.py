"""Settings for a file or folder, guessed from a look at it. Nothing is written, and a guess may be wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from workflow_lib import plugins
from workflow_lib.data import SPLITS
from workflow_lib.datasets._folder import class_folders, entries, files_below, split_folders, with_others
from workflow_lib.datasets._images import ImageSettings, decode
from workflow_lib.datasets.image_folder import SUFFIXES as IMAGES
from workflow_lib.errors import DataError
from workflow_lib.start.conversion import way
from workflow_lib.text import count

TEXTS = (".txt", ".md", ".py", ".rst")
TABLES = (".csv", ".tsv", ".parquet", ".pq", ".xlsx")
MASKS = ("masks", "mask", "labels", "annotations", "segmentation", "segmentations", "targets", "gt")  # names of folders
FEW = 10  # samples of a class that are too few to measure it
FEWEST_BATCHES = 10  # in all samples
UNEVEN = 10  # times as many samples as another class
LOOKED_AT = 200  # images whose size is read
LARGEST_SIDE = 224  # pixels of a guessed size
CLASSES_SHOWN = 8
MOST_DECODED = 200_000_000  # pixels
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a path has no second slash


@dataclass
class Guess:
    """The settings that differ from the defaults, what was found, and what is odd."""

    data: dict[str, Any]
    settings: dict[str, Any]
    found: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def fit_batches(self, samples: int) -> None:
        """Lower the batch size if the training split would give few batches."""
        training = self.settings["training"]
        while training["batch_size"] * FEWEST_BATCHES > samples and training["batch_size"] > 1:
            training["batch_size"] //= 2


def guess(path: Path) -> Guess:
    """Return settings for the data at the path. Raises DataError if there is nothing that a data set reads."""
    made = _guess(path)
    try:
        plugins.facts_in_headers(made.data["name"], made.data["params"], Path.cwd())
    except DataError as error:  # such as names of folders that are annotations, not classes
        if not any(line.startswith("to correct") for line in made.odd):
            made.odd.append(f"to correct: {error}")
    return made


def _guess(path: Path) -> Guess:
    if not path.exists():
        if ADDRESS.match(str(path)):
            address = str(path).replace(":/", "://", 1)
            raise DataError(f"--data {address}: is an address; download the data, as with `curl`, and give the file")
        raise DataError(f"--data {path}: no such file or folder (looked for in {Path.cwd()})")
    if path.is_dir():
        return _folder(path)
    if not path.is_file():  # reading a pipe or a device may never end
        raise DataError(f"--data {path}: is neither a file nor a folder")
    suffix = path.suffix.lower()
    if suffix == ".arrow":
        from workflow_lib.start.archives import of_arrow

        return of_arrow(path)
    if suffix == ".tar":
        from workflow_lib.start.archives import of_tars

        return of_tars(path)
    if suffix in (".parquet", ".pq"):
        from workflow_lib.start.archives import has_values_of_no_table, of_arrow

        if has_values_of_no_table(path):
            return of_arrow(path)
    if suffix in TABLES:
        from workflow_lib.start.tables import of_table

        return of_table(path)
    if suffix == ".npz":
        from workflow_lib.start.arrays import of_npz

        return of_npz(path)
    if suffix == ".txt":
        return _language(path, [path])
    raise DataError(
        f"--data {path}: a file {suffix or 'without a suffix'} is not read{way(path)}; allowed: {', '.join(TABLES)}, "
        ".arrow, .tar, .npz, .txt, and folders of images, texts, Parquet, Arrow or tar files. For others: "
        "`everstep init --all` and docs/data.md"
    )


def _folder(path: Path) -> Guess:
    """Return a guess for a folder: images or texts, with a folder for each class or without."""
    path = _inner(path)
    suffixes = Counter(file.suffix.lower() for file in files_below(path))
    if not suffixes:
        raise DataError(f"--data {path}: is an empty folder")
    images = sum(suffixes[suffix] for suffix in IMAGES)
    if not images and (suffixes[".arrow"] or suffixes[".parquet"] or suffixes[".pq"]):
        from workflow_lib.start.archives import of_arrow

        return of_arrow(path)
    if not images and suffixes[".tar"]:
        from workflow_lib.start.archives import of_tars

        return of_tars(path)
    for split in (inner for inner in entries(path) if inner.name in SPLITS and inner.is_dir()):
        if (pair := _images_and_masks(split)) is not None:
            images_here, masks_here = (path / folder.name / split.name for folder in pair)
            raise DataError(
                f"--data {path}: has images and masks in {split.name}; put the splits into the folders of images and "
                f"of masks, as in {images_here} and {masks_here}"
            )
    if (pair := _images_and_masks(path)) is not None:
        from workflow_lib.start.masks import of_masks

        return of_masks(*pair)
    if images * 2 < suffixes.total():
        common = suffixes.most_common(1)[0][0]
        if common not in TEXTS:
            first = next(file for file in files_below(path) if file.suffix.lower() == common)
            raise DataError(
                f"--data {path}: most files are {common or 'without a suffix'}, such as {first.name}{way(first)}; "
                f"allowed: images ({', '.join(IMAGES)}) and texts ({', '.join(TEXTS)}). For others: "
                "`everstep init --all` and docs/data.md"
            )
    if images and (made := _images_in_a_table(path)) is not None:
        return made
    if not any(inner.is_dir() for inner in entries(path)):
        if images:
            raise DataError(
                f"--data {path}: has images, but neither a folder for each class, as in {path}/rose/1.jpg, nor a table "
                "that names them"
            )
        return _language(path, [file for file in files_below(path) if file.suffix == common])
    list_classes = _image_folders if images else class_folders
    found = {split: list_classes(folder) for split, folder in split_folders(path).items()}
    classes = {
        name: sum(len(folders.get(name, ())) for folders in found.values())
        for name in sorted({name for folders in found.values() for name in folders})
    }
    files = [file for folders in found.values() for paths in folders.values() for file in paths]
    others = [file for file in files if images and file.suffix.lower() not in IMAGES]
    made = of_images(path, {str(f): f for f in files if f not in others}) if images else _labelled_texts(path)
    made.found = [f"{count(sum(classes.values()), 'file')} in folders of classes", counts_of(classes)]
    made.found += [*([f"folders of splits: {', '.join(found)}"] if len(found) > 1 else [])]
    made.odd += of_classes(classes)
    if images and (empty := [name for name, paths in found["train"].items() if not paths]):
        made.odd.append(f"to correct: no images of {', '.join(empty)}: fill the folder, or remove it")
    made.odd += [
        doubt for split, folder in split_folders(path).items() for doubt in _equal_folders(folder, found[split])
    ]
    made.fit_batches(sum(classes.values()))
    if others:
        first, number = others[0], len(others)
        what = f"{first} is no image" if number == 1 else f"{number:,} files are no images, such as {first}"
        made.odd.append(f"{what}; to be removed")
    return made


def _image_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each class; other files beside the folders, such as a README, are not read."""
    return {path.name: list(files_below(path, (folder.resolve(),))) for path in entries(folder) if path.is_dir()}


def _images_in_a_table(path: Path) -> Guess | None:
    """Return settings for a folder of images and the table that names them, if there is one."""
    files = list(files_below(path))
    images = [file for file in files if file.suffix.lower() in IMAGES]
    tables = [file for file in files if file.suffix.lower() in TABLES]
    if not tables or len({file.parent for file in images}) > 1:  # folders of classes
        return None
    from workflow_lib.start.image_tables import of_image_tables

    return of_image_tables(images, tables)


def _inner(path: Path) -> Path:
    """Return the folder with the classes, if a folder contains nothing but one other folder with folders."""
    while True:
        here = list(entries(path))
        if len(here) != 1 or not here[0].is_dir() or here[0].name in SPLITS:
            return path
        if not any(inner.is_dir() for inner in entries(here[0])):
            return path
        path = here[0]


def _equal_folders(path: Path, classes: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return a doubt if all classes have the same sub-folders and no file beside them: these may be the classes."""
    below = {
        name: {file.relative_to(path / name).parts[0] if file.parent != path / name else "" for file in files}
        for name, files in classes.items()
    }
    inner = next(iter(below.values()), set())
    if len(below) < 2 or len(inner) < 2 or "" in inner or any(names != inner for names in below.values()):
        return []
    shown = [", ".join(sorted(names)[:CLASSES_SHOWN]) for names in (below, inner)]
    return [
        f"the classes ({shown[0]}) have the same sub-folders ({shown[1]}): if those are the classes, put them on top"
    ]


def _images_and_masks(path: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of their masks, if there are two folders, and each image has a mask."""
    folders = [inner for inner in entries(path) if inner.is_dir()]
    masks = [folder for folder in folders if folder.name.lower() in MASKS]
    if len(folders) != 2 or len(masks) != 1:
        return None
    (images,) = (folder for folder in folders if folder != masks[0])
    if not any(file.suffix.lower() == ".png" for file in files_below(masks[0])):
        return None  # such as boxes in text files
    return images, masks[0]


def of_images(path: Path, files: Mapping[str, Path | BytesIO]) -> Guess:
    """Return settings for images, which are given by their names, as files or their content."""
    from PIL import Image

    names = list(files)[:: max(1, len(files) // LOOKED_AT)]
    sizes, modes = Counter[tuple[int, int]](), Counter[str]()
    bad: dict[str, DataError] = {}
    several = 0
    for name in names:
        file = files[name]
        try:
            with Image.open(file) as image:
                sizes[image.height, image.width] += 1
                modes[image.mode] += 1
        except Exception:  # decoders do not document what they raise on damage; that of the data set says what it is
            pass
        if sum(height * width * number for (height, width), number in sizes.items()) < MOST_DECODED:
            try:
                content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
                several += decode(content, name, ImageSettings()).info["images"] > 1
            except DataError as error:
                bad[name] = error
    if not sizes:
        raise DataError(f"--data {path}: none of its images can be read")
    sides = sorted(min(size) for size in sizes.elements())
    side = min(LARGEST_SIDE, max(8, sides[len(sides) // 2] // 8 * 8))
    is_grey = set(modes) <= {"L", "1", "I", "I;16"}
    made = Guess(
        {"name": "image_folder", "params": {"path": str(path), "size": side, "channels": "grey" if is_grey else "rgb"}},
        {"model": {"name": "cnn" if side <= 32 else "resnet"}, "training": {"epochs": 30, "batch_size": 64}},
    )
    if len(sizes) > 1:
        (low, high) = min(sizes), max(sizes)
        made.odd.append(
            f"images of different sizes, from {low[0]} x {low[1]} to {high[0]} x {high[1]} (height x width): they are "
            f"scaled to {side} x {side} and cut; see data.params.resize"
        )
    if bad:
        of_some = f" (of {len(names)} that were looked at)"
        made.odd.append(f"to correct: {with_others(bad, len(names))}{of_some if len(names) < len(files) else ''}")
    if several:
        made.odd.append(f"{count(several, 'file')} with several images each (MPO): the first one is used")
    return made


def _labelled_texts(path: Path) -> Guess:
    return Guess(
        {"name": "labelled_text", "params": {"path": str(path)}},
        {
            "model": {"name": "text_encoder"},
            "training": {"epochs": 10, "batch_size": 32, "clip_norm": 1.0, "select_metric": "val_accuracy"},
        },
    )


def of_language(data: Mapping[str, Any]) -> Guess:
    """Return settings for a language model of the data."""
    return Guess(
        dict(data), {"model": {"name": "transformer"}, "training": {"epochs": 2, "batch_size": 32, "clip_norm": 1.0}}
    )


def _language(path: Path, files: Sequence[Path]) -> Guess:
    size = sum(file.stat().st_size for file in files)
    pattern = {"pattern": f"*{files[0].suffix}"} if path.is_dir() else {}
    made = of_language({"name": "text", "params": {"path": str(path), **pattern}})
    made.found.append(f"{count(len(files), 'text')} of {size / 1e6:,.2f} MB: a language model, which continues them")
    made.odd += ["less than 0.1 MB of text: too little to learn a language"] if size < 1e5 else []
    if not path.is_dir() and (delimiter := _delimiter(path)) is not None:
        made.odd.append(f"each line has as many {delimiter!r} as the others: if it is a table, name it .csv")
    return made


def _delimiter(path: Path) -> str | None:
    """Return what divides the lines of a text into equally many values, if there is such a character."""
    from workflow_lib.start.tables import delimiter_of

    with suppress(DataError):  # not UTF-8: no table
        return delimiter_of(path)
    return None


def counts_of(classes: Mapping[str, int]) -> str:
    """Return the classes with their counts, most frequent first."""
    shown = sorted(classes.items(), key=lambda item: -item[1])
    more = f", and {len(shown) - CLASSES_SHOWN} more" if len(shown) > CLASSES_SHOWN else ""
    return (
        f"{len(shown)} class{'' if len(shown) == 1 else 'es'}: "
        + ", ".join(f"{name} {n:,}" for name, n in shown[:CLASSES_SHOWN])
        + more
    )


def of_classes(classes: Mapping[str, int]) -> list[str]:
    """Return what is odd about the numbers of samples of the classes."""
    if len(classes) < 2:
        return ["there is only one class: nothing can be learned"]
    rare = [name for name, number in classes.items() if number < FEW]
    odd = [f"fewer than {FEW} samples: {', '.join(rare[:CLASSES_SHOWN])}; see data.rare_classes"] if rare else []
    if max(classes.values()) > UNEVEN * min(classes.values()):
        odd.append("the classes are of very different sizes; see training.class_weights and training.sampling")
    return odd
