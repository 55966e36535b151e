"""A file appears complete or not at all, and a failed write leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workflow_lib.files import write_atomic


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
