"""The training curve on disk: one line of metrics for each epoch in the state, and no other."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.errors import SaveError
from workflow_lib.files import write_atomic

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, float | None]]


class Curve:
    """The metrics file of a workspace. Only the attempt that owns the workspace writes it."""

    def __init__(self, path: Path, store: CheckpointStore) -> None:
        self._path, self._store = path, store

    def write(self, history: Rows) -> None:
        """Make the file hold these rows: remove rows that an earlier attempt wrote after its last save.

        If the disk fails, warn; the next epoch writes the missing rows.
        """
        rows = lines(history)
        try:
            self._store.check_ownership()
            present = self._path.read_bytes() if self._path.exists() else b""
            if not rows.startswith(present):
                write_atomic(self._path, rows)
            elif present != rows:
                with self._path.open("ab") as file:
                    file.write(rows[len(present) :])
        except OSError as error:
            logger.warning("cannot write the metrics: %s. Training continues", error)

    def seal(self, history: Rows) -> None:
        """Write all rows durably, before the final checkpoint: no later attempt would repair the file."""
        try:
            self._store.check_ownership()
            write_atomic(self._path, lines(history))
        except OSError as error:
            raise SaveError(f"cannot write {self._path}: {error}") from error


def lines(history: Rows) -> bytes:
    """Return the rows as lines of JSON."""
    return "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in history).encode()
