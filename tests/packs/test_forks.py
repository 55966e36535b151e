"""Forks of a pack: what their logs say."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path

from tests.support.crash import run_forked
from workflow_lib.packs.forks import Forks, Task
from workflow_lib.store.events import NAME, LineHandler


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    codes = tmp_path / "codes"

    def save() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx")

    def ended(code: int) -> tuple[Task, ...]:
        codes.write_text(str(code))
        return ()

    def pack() -> None:
        sys.stderr = os.fdopen(2, "w", closefd=False)  # not that of pytest
        logging.getLogger(NAME).addHandler(LineHandler(rank=0))
        Forks(1).run([Task("seed1", save, tmp_path / "log", ended)])

    assert run_forked(pack) == 0
    assert codes.read_text() == "1"
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "error seed1: " in line
    assert "No space left on device" in line
    assert "model.onnx" in line
