"""The places of images in tar files, and the targets beside them."""

from __future__ import annotations

import functools
import json
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from workflow_lib.errors import DataError

IMAGES = ("jpg", "jpeg", "png")
Member = tuple[str, str, int, int]  # key, extension, first byte, bytes


def index_tars(
    found: Mapping[str, Sequence[Path]], target: str, key: str | None
) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """Return the file, first byte and size of each image of each split, as arrays, and the targets."""
    places: dict[str, np.ndarray] = {}
    targets: dict[str, list[Any]] = {}
    for split, paths in found.items():
        columns = {name: array("q") for name in ("file", "start", "size")}
        targets[split] = []
        for number, path in enumerate(paths):
            for (start, size), value in _samples(path, target, key):
                for column, item in zip(columns.values(), (number, start, size), strict=True):
                    column.append(item)
                targets[split].append(value)
        places |= {f"{split}.{name}": np.array(column, np.int64) for name, column in columns.items()}
    return places, targets


def check_first(path: Path, target: str, key: str | None) -> None:
    """Raise DataError if the first sample of a tar file is not an image and its target."""
    if next(_samples(path, target, key), None) is None:
        raise DataError(f"{path}: has no sample: an image ({', '.join(IMAGES)}) and a file with its target")


@functools.lru_cache(maxsize=1)  # rows are named in the order of the files
def names_of(path: Path, state: object) -> dict[int, str]:
    """Return the name of the sample of each image in a tar file in this state, by the first byte of the image."""
    return {start: name for name, extension, start, _ in _members(path) if extension in IMAGES}


def images_of(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the name, first byte and size of each image in a tar file; other files of its sample do not matter."""
    before = ""
    for name, extension, start, size in _members(path):
        if extension in IMAGES:
            if name == before:
                raise DataError(f"{path}: the sample `{name}` has more than one image; allowed: one")
            before = name
            yield name, start, size


def _samples(path: Path, target: str, key: str | None) -> Iterator[tuple[tuple[int, int], Any]]:
    """Yield the place of each image in a tar file, and its target."""
    with path.open("rb") as file:
        members: dict[str, tuple[int, int]] = {}
        seen: set[str] = set()
        current = ""
        for name, extension, start, size in chain(_members(path), [("", "", 0, 0)]):
            if name != current and current:
                images = [extension for extension in IMAGES if extension in members]
                if len(images) != 1 or target not in members:
                    there = ", ".join(sorted(members))
                    raise DataError(
                        f"{path}: the sample `{current}` has the files {there}; allowed: one image "
                        f"({', '.join(IMAGES)}) and its target, {target} (data.params.target), as neighbours"
                    )
                first, length = members[target]
                file.seek(first)
                yield members[images[0]], _target(file.read(length), f"{path}: {current}.{target}", target, key)
                seen.add(current)
                members = {}
            if name in seen or extension in members:
                raise DataError(f"{path}: the sample `{name}` occurs twice; the files of a sample must be neighbours")
            current = name
            if name:
                members[extension] = (start, size)


def _members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                tar.members = []  # type: ignore[attr-defined]  # otherwise the list of all members stays in memory
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                if not member.isdir() and key:  # a name that begins with a dot is hidden
                    if not member.isreg() or member.issparse():
                        raise DataError(f"{path}: `{member.name}` is not a plain file; write it as one")
                    if member.offset_data + member.size > size:
                        raise DataError(f"{path}: ends before `{member.name}` does: it is incomplete")
                    yield f"{folder}/{key}" if folder else key, extension.lower(), member.offset_data, member.size
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path}: has no mark of its end at byte {end}: it is incomplete or damaged")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: is not an uncompressed tar file, or damaged ({error}); decompress it") from error


def _target(content: bytes, where: str, extension: str, key: str | None) -> Any:
    """Return a number if the content is one, else a text."""
    try:
        text = content.decode().strip()
        value: Any = json.loads(text) if extension.endswith("json") else text
    except ValueError as error:
        raise DataError(f"{where}: cannot be read ({error})") from error
    if key is not None:
        if not isinstance(value, dict) or key not in value:
            names = ", ".join(sorted(value)[:20]) if isinstance(value, dict) else "no names"
            raise DataError(f"{where}: has {names}; `{key}` is missing (data.params.key)")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DataError(f"{where}: is {value!r:.60}; allowed: a number or a text")
    try:
        return int(value) if isinstance(value, str) else value
    except ValueError:
        return value
