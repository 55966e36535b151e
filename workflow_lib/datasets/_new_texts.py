"""Texts to classify, read as those of the training: a column of a table, the files of a folder, or one file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_lib.data import Inputs
from workflow_lib.data.inputs import Named
from workflow_lib.datasets._folder import files_below
from workflow_lib.datasets._new_rows import check_usable
from workflow_lib.datasets._tables import open_table
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """Reads texts: `encode` returns their tokens, and `size` the number of tokens of a text before it is cut."""

    encode: Callable[[Sequence[str]], np.ndarray]
    size: Callable[[str], int]
    length: int

    def files(self, path: Path, pattern: str, text_of: Callable[[Path], str]) -> Inputs:
        """Return the text of a file, or the texts of a folder whose files match the pattern, named by their file."""
        is_folder = path.is_dir()
        found = [file for file in files_below(path) if file.relative_to(path).match(pattern)] if is_folder else [path]
        if not found:
            raise DataError(f"{path}: no file matches `{pattern}` (data.params.pattern)")

        def read(size: int) -> Iterator[Named]:
            longer = 0
            for start in range(0, len(found), size):
                files = found[start : start + size]
                names = [file.relative_to(path).as_posix() if is_folder else file.name for file in files]
                texts = [_checked(text_of(file), str(file)) for file in files]
                longer += self._longer(texts)
                yield {"file": names}, self.encode(texts)
            self._warn(path, longer)

        return Inputs(read=read, samples=len(found))

    def column(self, path: Path, delimiter: str, name: str) -> Inputs:
        """Return the texts of a column of a table, named by the number of their row, from 0."""
        table = open_table(path, delimiter)
        try:
            check_usable(table, name, [name])
        except DataError:
            table.close()
            raise

        def read(size: int) -> Iterator[Named]:
            longer = 0
            for piece in table.scan([name]):
                values = piece.values[name]
                if isinstance(values, np.ndarray):
                    raise DataError(f"{path}, column `{name}`: has numbers, not texts (data.params.text)")
                pairs = zip(values, piece.places, strict=True)
                texts = [_checked(text or "", f"{path}, {place}, column `{name}`") for text, place in pairs]
                longer += self._longer(texts)
                yield {"row": piece.rows}, self.encode(texts)
            self._warn(path, longer)

        return Inputs(read=read, close=table.close)

    def _longer(self, texts: Sequence[str]) -> int:
        return sum(self.size(text) > self.length for text in texts)

    def _warn(self, path: Path, longer: int) -> None:
        if longer:
            log.warning("%s: %d texts are longer than %d tokens: their ends are cut", path, longer, self.length)


def _checked(text: str, where: str) -> str:
    if not text or "\0" in text:
        what = "has the character 0, which no text has; remove it" if text else "is empty"
        raise DataError(f"{where}: the text {what}")
    return text
