"""Images in WebDataset tar files, read in place: the files of a sample have one name up to the first dot.

    0001.jpg, 0001.cls, 0002.jpg, 0002.cls ...

Folders or first words of the names of the tar files (train-0000.tar) are the splits; a missing one is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from workflow_lib.datasets._images import ImageSettings
from workflow_lib.errors import DataError
from workflow_lib.plugins import DatasetFacts, Task
from workflow_lib.plugins.section import reject_unused

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Inputs, Manifest, Source
    from workflow_lib.data.inputs import Named


COMPRESSED = dict.fromkeys(
    (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    "is compressed and cannot be read in place; decompress it",
)


class Params(ImageSettings):
    """Settings of the files, and of the images."""

    path: Path = Field(description="a tar file, or a folder of tar files at any depth")
    target: str = Field(
        "cls", min_length=1, description="extension of the files with the target: cls, txt, or json with `key`"
    )
    key: str | None = Field(None, description="name of the target in a json file; null: the file is the target")
    kind: Literal["classification", "regression"] = Field("classification", description="task: classes or numbers")
    classes: tuple[str, ...] = Field((), description="names of the classes 0, 1, ...; default: those in the files")

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if not self.target.endswith("json"):
            reject_unused(self, ("key",), "target: json")
        if self.kind == "regression":
            reject_unused(self, ("classes",), "kind: classification")
        return self


def task(params: Params) -> Task:
    """Return the task of the settings."""
    return params.kind


def known(params: Params) -> DatasetFacts:
    """Return the kind, size and channels of the inputs."""
    return DatasetFacts("images", size=params.shape, channels=3 if params.channels == "rgb" else 1)


def look(params: Params, root: Path) -> DatasetFacts:
    """Return the known facts. Raises DataError if a tar file, of the first ones of each split, has no sample."""
    from workflow_lib.datasets._splits import LOOKED_AT, files_of_splits
    from workflow_lib.datasets._tar_members import check_first

    _check(params)
    for paths in files_of_splits(root / params.path, (".tar",), COMPRESSED).values():
        for path in paths[:LOOKED_AT]:
            check_first(path, params.target, params.key)
    return replace(known(params), classes=len(params.classes) or None)


def open_source(params: Params, root: Path, index: Mapping[str, np.ndarray] | None = None) -> Source:
    """Return the images of the tar files; `index` has the place of each in its file, and the targets."""
    import numpy as np

    from workflow_lib.data import MappedFiles, Source
    from workflow_lib.datasets._folder import name_below
    from workflow_lib.datasets._images import pixels
    from workflow_lib.datasets._labels import from_index, to_index
    from workflow_lib.datasets._splits import files_of_splits
    from workflow_lib.datasets._tar_members import index_tars, names_of

    _check(params)
    found = files_of_splits(root / params.path, (".tar",), COMPRESSED)
    mapped = MappedFiles([path for paths in found.values() for path in paths])
    first = dict(zip(found, np.cumsum([0, *map(len, found.values())]).tolist(), strict=False))

    def name_of(places: Mapping[str, np.ndarray], split: str, row: int) -> tuple[Path, str]:
        number = first[split] + int(places[f"{split}.file"][row])
        path = mapped.paths[number]
        return path, names_of(path, mapped.states[number])[int(places[f"{split}.start"][row])]

    if index is None:
        places, values = index_tars(found, params.target, params.key)
        index = places | to_index(
            values, params.kind, params.classes, lambda split, row: "{}: {}".format(*name_of(places, split, row))
        )
    targets, classes = from_index(index, found)

    def named(split: str, rows: np.ndarray) -> dict[str, Any]:
        paths, samples = zip(*(name_of(index, split, row) for row in rows.tolist()), strict=True)
        return {"file": [name_below(path, root / params.path) for path in paths], "key": samples}

    def read(split: str, rows: np.ndarray) -> np.ndarray:
        images = []
        files, starts, sizes = (index[f"{split}.{name}"][rows].tolist() for name in ("file", "start", "size"))
        for number, start, size in zip(files, starts, sizes, strict=True):
            content = mapped.view(first[split] + number, start, start + size)
            name = f"{mapped.paths[first[split] + number]}, image at byte {start}"
            images.append(np.moveaxis(pixels(content, name, params, params.shape), 2, 0))
        return np.stack(images)

    return Source(
        task=params.kind,
        targets=targets,
        read=read,
        sample_names=named,
        classes=classes,
        scale=255.0,
        mapped=mapped,
        index=index,
        is_thread_safe=True,
        close=mapped.close,
    )


def _check(params: Params) -> None:
    if params.shape is None:
        raise DataError("data.params.size is missing: images in tar files are scaled to one size when they are read")


def open_inputs(params: Params, path: Path, manifest: Manifest) -> Inputs:
    """Return the images of a tar file, or of those of a folder, named by file and key; targets may lack."""
    import itertools

    import numpy as np

    from workflow_lib.data import Inputs
    from workflow_lib.datasets._images import pixels
    from workflow_lib.datasets._splits import new_files
    from workflow_lib.datasets._tar_members import images_of

    files = new_files(path, (".tar",))

    def read(size: int) -> Iterator[Named]:
        for name, file in files.items():
            images = images_of(file)
            with file.open("rb") as opened:
                while places := list(itertools.islice(images, size)):
                    found = []
                    for sample, start, length in places:
                        opened.seek(start)
                        image = pixels(opened.read(length), f"{file}: {sample}", params, params.shape)
                        found.append(np.moveaxis(image, 2, 0))
                    yield {"file": [name] * len(found), "key": [sample for sample, *_ in places]}, np.stack(found)

    return Inputs(read=read)
