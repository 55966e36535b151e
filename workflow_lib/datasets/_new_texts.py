"""Texts to classify, read as those of the training: a column of a table, the files of a folder, or one file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_lib.data import Inputs
from workflow_lib.data.inputs import Named
from workflow_lib.datasets._folder import files_below
from workflow_lib.datasets._new_rows import check_usable
from workflow_lib.datasets._tables import open_table
from workflow_lib.datasets._text_tokens import Tokens, filled
from workflow_lib.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """Reads texts as tokens, cut or filled up to one length."""

    tokens: Tokens
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
                texts = [text_of(file) for file in files]
                longer += self._check(texts, map(str, files))
                yield {"file": names}, filled(self.tokens, texts, self.length)
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
                texts = [text or "" for text in values]
                longer += self._check(texts, (f"{path}, {place}, column `{name}`" for place in piece.places))
                yield {"row": piece.rows}, filled(self.tokens, texts, self.length)
            self._warn(path, longer)

        return Inputs(read=read, close=table.close)

    def _check(self, texts: Sequence[str], places: Iterable[str]) -> int:
        """Return the number of texts that are cut. Raises DataError for one that cannot be used."""
        longer = 0
        for where, (size, problem) in zip(places, self.tokens.measure(texts), strict=True):
            if problem:
                raise DataError(f"{where}: the text {problem}")
            longer += size > self.length
        return longer

    def _warn(self, path: Path, longer: int) -> None:
        if longer:
            log.warning("%s: %d texts are longer than %d tokens: their ends are cut", path, longer, self.length)
