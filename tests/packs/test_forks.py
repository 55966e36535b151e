"""Forks of a pack: what their logs say, and how a request to stop ends the work between them."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("is_preparing", "code"), [(False, -signal.SIGTERM), (True, None)])
def test_a_request_to_stop_ends_the_work_between_the_forks(
    tmp_path: Path, is_preparing: bool, code: int | None
) -> None:
    """An import of seconds would otherwise go on when the tasks have saved; imported code may catch exceptions."""
    codes, passed = tmp_path / "codes", tmp_path / "passed"

    def work() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        with suppress(Exception):
            time.sleep(10)
        passed.touch()
        return True

    def ended(code: int) -> tuple[Task, ...]:
        codes.write_text(str(code))
        return ()

    def pack() -> None:
        forks = Forks(1)
        task = Task("seed1", signal.pause, tmp_path / "log", ended)
        if is_preparing:
            forks.run([replace(task, prepare=work)])
        else:
            forks.run([task], meanwhile=work)
        assert forks.stop_signal == signal.SIGINT

    assert run_forked(pack) == 0
    assert not passed.exists()
    assert (int(codes.read_text()) if codes.exists() else None) == code
