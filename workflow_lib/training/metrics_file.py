"""The curve of a run on disk, a row of metrics for each epoch: it holds exactly the rows of the state."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.errors import SaveError
from workflow_lib.files import write_atomic

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, float]]


class Curve:
    """The metrics file of a workspace, which is written by the attempt that owns it."""

    def __init__(self, path: Path, store: CheckpointStore) -> None:
        self._path, self._store = path, store

    def keep(self, history: Rows) -> None:
        """The file has these rows: what a lost attempt wrote after its last save is cut off.

        Where the disk refuses, a warning says so, and the next epoch makes it good.
        """
        rows = lines(history)
        try:
            self._store.refuse_if_taken_over()
            present = self._path.read_bytes() if self._path.exists() else b""
            if not rows.startswith(present):
                write_atomic(self._path, rows)
            elif present != rows:
                with self._path.open("ab") as file:
                    file.write(rows[len(present) :])
        except OSError as error:
            logger.warning("cannot write the metrics: %s. Training goes on", error)

    def seal(self, history: Rows) -> None:
        """The file is whole and durable: once the run is sealed, nobody would mend it."""
        try:
            self._store.refuse_if_taken_over()
            write_atomic(self._path, lines(history))
        except OSError as error:
            raise SaveError(f"cannot write {self._path}: {error}") from error


def lines(history: Rows) -> bytes:
    """The rows, a line of JSON each."""
    return "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in history).encode()
