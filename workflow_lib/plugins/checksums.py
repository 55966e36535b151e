"""Checksums of data files: a file that does not have the checksum in the settings is rejected before it is used.

The checksum of a folder is that of the list that `sha256sum` (or `md5sum`) prints for its files without hidden ones:

    find . -xtype f -not -path '*/.*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field

from workflow_lib.errors import DataError
from workflow_lib.plugins import Section
from workflow_lib.plugins.section import NOT_IDENTITY

BLOCK = 1 << 20  # bytes read at once


def _digits(count: int) -> dict[str, Any]:
    extra = NOT_IDENTITY | {"allowed": f"{count} hex digits"}
    return {"pattern": f"^[0-9a-fA-F]{{{count}}}$", "json_schema_extra": extra}


class Checksums(Section):
    """Base class for the `Params` of a data set that reads files; its `open_source` must call `verify` first."""

    sha256: str | None = Field(None, description="SHA-256 that the data must have; null takes any", **_digits(64))
    md5: str | None = Field(None, description="MD5 that the data must have; null takes any", **_digits(32))

    def verify(self, path: Path) -> None:
        """Raise DataError if the file or folder has other checksums; do nothing if it does not exist."""
        wanted = {name: value.lower() for name in ("sha256", "md5") if (value := getattr(self, name))}
        if not wanted or not path.exists():
            return
        found = checksums(path, *wanted)
        for name, value in wanted.items():
            if found[name] != value:
                raise DataError(
                    f"{path}: its {name} is {found[name]}, but data.params.{name} is {value}: another version, "
                    f"damaged or incomplete. Download it again, or correct the setting"
                )


def checksums(path: Path, *names: str) -> dict[str, str]:
    """Return the hex digests of a file or folder by name of the algorithm; each file is read once."""
    if path.is_dir():
        return _of_folder(path, *names)
    hashers = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def _of_folder(folder: Path, *names: str) -> dict[str, str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = sorted(
        (f"./{path}" for path in files if not any(part.startswith(".") for part in path.parts)),
        key=os.fsencode,  # the order of `LC_ALL=C sort`: by bytes
    )
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda name: checksums(folder / name, *names), shown))
    lists = {
        algorithm: "".join(f"{digests[algorithm]}  {path}\n" for path, digests in zip(shown, found, strict=True))
        for algorithm in names
    }
    return {
        algorithm: hashlib.new(algorithm, os.fsencode(text), usedforsecurity=False).hexdigest()
        for algorithm, text in lists.items()
    }
