"""A file of data is the one that the settings name by its checksum, or it is refused before anything is made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field

from workflow_lib.config.sections import ASIDE
from workflow_lib.errors import DataError
from workflow_lib.plugins import Section

BLOCK = 1 << 20  # bytes read at once


def _digits(count: int) -> dict[str, Any]:
    return {"pattern": f"^[0-9a-fA-F]{{{count}}}$", "json_schema_extra": ASIDE | {"allowed": f"{count} hex digits"}}


class Checksums(Section):
    """For the `Params` of a data set in one file to inherit; `open_source` calls `verify` first of all."""

    sha256: str | None = Field(None, description="SHA-256 that the file must have; null takes any", **_digits(64))
    md5: str | None = Field(None, description="MD5 that the file must have; null takes any", **_digits(32))

    def verify(self, path: Path) -> None:
        """The file has these checksums, else DataError; whether there is one is the data set's question."""
        wanted = {name: value.lower() for name in ("sha256", "md5") if (value := getattr(self, name))}
        if not wanted or not path.is_file():
            return
        found = checksums(path, *wanted)
        for name, value in wanted.items():
            if found[name] != value:
                raise DataError(
                    f"{path}: its {name} is {found[name]}, but data.params.{name} is {value}: another version of the "
                    f"file, or cut short ({path.stat().st_size} bytes). Get the file again, or correct the setting"
                )


def checksums(path: Path, *names: str) -> dict[str, str]:
    """Hex digests of a file by the name of their algorithm, in one reading."""
    hashers = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}
