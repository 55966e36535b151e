"""Images of a folder, and a CSV or Parquet file with a row for each: classes, labels or numbers to predict.

photos/1.jpg, photos/a/2.png      rows of the table: 1.jpg,1,0 and a/2.png,0,1

Rows name images by their path in the folder; the ending may be left out. Every image that is named is decoded once
before the first shard is written, so that damage is found early.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from workflow_lib.datasets import image_folder
from workflow_lib.datasets._images import ImageSettings, pixels
from workflow_lib.datasets._target_settings import TargetSettings
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.checksums import Checksums

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.datasets._tables import Piece, Table
    from workflow_lib.datasets._targets import TargetColumn

log = logging.getLogger(__name__)


class Params(ImageSettings, TargetSettings, Checksums):
    """Settings of the folder, of the table, and size and colours of the inputs."""

    path: Path = Field(description="folder of the images, relative to the project's root")
    table: Path = Field(description="CSV, Parquet or Excel (.xlsx) file with a row for each image")
    file: str = Field("file", description="column with the path of the image in the folder")


def task(params: Params) -> Task:
    """Return the task, which is a setting."""
    return params.task


def known(params: Params) -> DatasetFacts:
    """Return the kind, size and channels of the inputs, and the number of labels or of numbers to predict."""
    return DatasetFacts(
        "images",
        size=params.shape,
        channels=3 if params.channels == "rgb" else 1,
        classes=len(params.targets) if params.task == "multilabel" else None,
        outputs=len(params.targets) if params.task == "regression" else None,
    )


def look(params: Params, root: Path) -> DatasetFacts:
    """Return what is known. Raises DataError if the settings do not fit the columns that the table's header names."""
    with _opened_table(params, root):
        return known(params)


def open_source(params: Params, root: Path) -> Source:
    """Return the images that the table names, each of which was decoded once."""
    import numpy as np

    from workflow_lib.data import SPLITS, Source, SourceFile, content_digest

    folder = root / params.path
    params.verify(folder)
    with _opened_table(params, root) as table:
        rows, columns = _scan(table, _Folder.of(folder), params), _columns(table.path, params)
        images: dict[str, list[Path]] = {split: [] for split in SPLITS}
        places: dict[str, list[int]] = {split: [] for split in SPLITS}
        for piece, splits, paths in rows:
            for column in columns:
                column.add(piece, splits == "train")
            for number, split, path in zip(piece.rows.tolist(), splits.tolist(), paths, strict=True):
                images[split].append(path)
                places[split].append(number)
        source = SourceFile.of(table.path)
    if not images["train"]:
        raise DataError(f"{root / params.table}: has no rows of train")
    for column in columns:
        for warning in column.warnings():
            log.warning("%s", warning)
    encoded = [column.encoded() for column in columns]
    is_alone = params.task != "multilabel" and isinstance(params.target, str)
    targets = encoded[0] if is_alone else np.stack(encoded, axis=1)
    images = {split: paths for split, paths in images.items() if paths}
    in_order = [path for paths in images.values() for path in paths]
    checked = image_folder.checked(in_order, params)
    shape = params.shape or image_folder.common_size(checked)
    digest_of = {file.path: file.digest for file, _ in checked}
    channels = 3 if params.channels == "rgb" else 1

    def read(split: str, wanted: np.ndarray) -> np.ndarray:
        inputs = np.empty((len(wanted), *shape, channels), np.uint8)
        for place, row in enumerate(wanted.tolist()):
            path = images[split][row]
            inputs[place] = pixels(image_folder.content_of(path), str(path), params, shape)
        return np.moveaxis(inputs, 3, 1)

    return Source(
        task=params.task,
        targets={split: targets[places[split]] for split in images},
        read=read,
        is_thread_safe=True,
        classes=params.targets if params.task == "multilabel" else columns[0].classes,
        outputs=params.targets if params.task == "regression" and not is_alone else (),
        scale=255.0,
        files=(source, *(file for file, _ in checked)),
        content=content_digest(np.array([file.digest for file, _ in checked])),  # the order of the images counts
        row_digests={split: [digest_of[path] for path in paths] for split, paths in images.items()},
        row_name=lambda split, row: str(images[split][row]),
        sample_names=lambda split, wanted: {
            "file": [images[split][row].relative_to(folder).as_posix() for row in wanted.tolist()]
        },
    )


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return an image, or the images of a folder at any depth, as `image_folder` does."""
    return image_folder.open_inputs(params, path, manifest)


@contextmanager
def _opened_table(params: Params, root: Path) -> Iterator[Table]:
    """Yield the table. Raises DataError if it lacks a column that the settings name, or one has another type."""
    from workflow_lib.datasets._tables import check_column, check_names, open_table

    marks = (params.delimiter, params.decimal)
    with closing(open_table(root / params.table, *marks, "table", sheet=params.sheet)) as table:
        check_names(table)
        named = {"file": (params.file,), "target": params.targets, "categorical": params.categorical}
        for setting, names in (named | ({"split": (params.split,)} if params.split else {})).items():
            for name in names:
                check_column(table, setting, name)
                if name in table.unusable:
                    raise DataError(
                        f"{table.path}: column `{name}` has type {table.unusable[name]}; allowed: numbers, strings, "
                        "booleans; convert it"
                    )
        yield table


def _columns(path: Path, params: Params) -> list[TargetColumn]:
    from workflow_lib.datasets._targets import KINDS

    kind = KINDS[params.task]
    return [kind(path, name, params.notation, name in params.categorical) for name in params.targets]


@dataclass(frozen=True)
class _Folder:
    """The images of a folder, by their path in it, and by the path without its ending."""

    path: Path
    images: Mapping[str, Path]
    without_ending: Mapping[str, Sequence[Path]]

    @classmethod
    def of(cls, folder: Path) -> _Folder:
        from workflow_lib.datasets._folder import files_below

        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "there is no such folder"
            raise DataError(f"{folder}: {what} (data.params.path)")
        images = {
            path.relative_to(folder).as_posix(): path
            for path in files_below(folder)
            if path.suffix.lower() in image_folder.SUFFIXES
        }
        without: dict[str, list[Path]] = {}
        for name, path in images.items():
            without.setdefault(name.removesuffix(path.suffix), []).append(path)
        return cls(folder, images, without)

    def named(self, name: str, where: str) -> Path:
        """Return the image of a row. Raises DataError if there is none, or several that differ in their ending."""
        if (path := self.images.get(name)) is not None:
            return path
        found = self.without_ending.get(name, ())
        if len(found) == 1:
            return found[0]
        what = f"{found[0].name} and {found[1].name} are" if found else "no image is"
        raise DataError(f"{where}: {what} called `{name}` in {self.path}; name an image with its ending")


def _scan(table: Table, folder: _Folder, params: Params) -> Iterator[tuple[Piece, np.ndarray, list[Path]]]:
    """Yield the rows in pieces, with the split and the image of each; at the end, warn of images without a row."""
    from workflow_lib.datasets._tables import splits_of
    from workflow_lib.datasets._values import names_of

    place_of: dict[Path, str] = {}
    wanted = dict.fromkeys([params.file, *params.targets, *([params.split] if params.split else [])])
    for piece in table.scan(list(wanted)):
        values, paths = piece.values[params.file], []
        names = names_of(values, params.notation) if not isinstance(values, Sequence) else list(values)
        for name, place in zip(names, piece.places, strict=True):
            where = f"{table.path}, {place}, column `{params.file}`"
            path = folder.named(name or "", where)
            if (other := place_of.setdefault(path, place)) != place:
                raise DataError(f"{where}: `{name}` is also in {other}; give each image one row")
            paths.append(path)
        yield piece, splits_of(table.path, params.split, piece), paths
    if unnamed := [name for name, path in folder.images.items() if path not in place_of]:
        log.warning(
            "%s: %d of %d images are in no row of %s, such as %s: they are left out",
            folder.path, len(unnamed), len(folder.images), table.path, unnamed[0],
        )  # fmt: skip
