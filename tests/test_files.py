"""A file appears complete or not at all, and a failed write leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workflow_lib.files import SMALL_BYTES, file_state, write_atomic


def test_a_rejected_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "a", "a folder has the name")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    write_atomic(tmp_path / "a", "old")
    interrupted: Any = pieces()
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", interrupted)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_large_file_that_is_replaced_with_its_size_and_time_kept_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "large"
    path.parent.mkdir()
    path.write_bytes(bytes(SMALL_BYTES + 1))
    before, states = path.stat(), [file_state(path), file_state(path.parent)]
    assert states == [file_state(path), file_state(path.parent)]
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system may have coarse steps
        path.write_bytes(b"1" * (SMALL_BYTES + 1))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert file_state(path) != states[0]
    assert file_state(path.parent) != states[1]
