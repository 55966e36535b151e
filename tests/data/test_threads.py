"""Shards written by several threads at once are the same as those of one thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.repository import ROOT
from workflow_lib import data
from workflow_lib.data import Manifest, Source
from workflow_lib.errors import DataError
from workflow_lib.plugins import Section

IMAGES = np.random.default_rng(2).normal(size=(150, 2, 3, 3)).astype(np.float32)
SHARDS = 26  # of 6 samples: 98 are train, 22 val, 30 test


class Reader:
    """A `read` that counts how many threads call it at once."""

    def __init__(self, meeting: threading.Barrier | None = None) -> None:
        self.inside = self.most = self.asked = 0
        self.lock = threading.Lock()
        self.meeting = meeting

    def __call__(self, split: str, rows: np.ndarray) -> np.ndarray:
        with self.lock:
            self.inside, self.asked = self.inside + 1, self.asked + 1
            self.most = max(self.most, self.inside)
        if self.meeting and len(rows) > 1:  # one row is read first, to see what it is like
            self.meeting.wait()
        if self.asked > int(os.environ.get("KILLED_AFTER", 10**9)):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)  # others would come in now
        with self.lock:
            self.inside -= 1
        return IMAGES[rows]


class Params(Section):
    """No settings."""


READ, IS_THREAD_SAFE = Reader(), True


def open_source(params: Params, root: Path) -> Source:
    """Return the images with the current reader."""
    return Source(
        targets={"train": np.arange(150) % 3}, read=READ, classes=("a", "b", "c"), is_thread_safe=IS_THREAD_SAFE
    )


def prepare(folder: Path, threads: int) -> Manifest:
    name = f"given.{Path(__file__).stem}"
    sys.modules[name] = sys.modules[__name__]
    try:
        return data.prepare({"name": name, "shard_samples": 6}, folder, folder / "work", threads)
    finally:
        del sys.modules[name]


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in (folder / "work").rglob("*.*") if path.parent.name != "leases"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    reader = Reader()
    monkeypatch.setattr(sys.modules[__name__], "READ", reader)
    return reader


def read_by(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    for name, value in values.items():
        monkeypatch.setattr(sys.modules[__name__], name, value)


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads_gives_the_same_files(threads: int, tmp_path: Path) -> None:
    assert prepare(tmp_path / "one", 1) == prepare(tmp_path / "more", threads)
    assert files(tmp_path / "one") == files(tmp_path / "more")
    assert len(files(tmp_path / "one")) == 1 + SHARDS


def test_a_thread_safe_source_is_read_by_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=300)
    read_by(monkeypatch, READ=(reader := Reader(meeting)))
    prepare(tmp_path, 2)
    assert reader.most == 2


def test_a_source_that_is_not_thread_safe_is_read_by_one_thread(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, IS_THREAD_SAFE=False)
    prepare(tmp_path, 5)
    assert reader.most == 1
    assert reader.asked == 1 + SHARDS


def test_whole_shards_are_not_read_again(tmp_path: Path, reader: Reader) -> None:
    manifest = prepare(tmp_path, 3)
    before, reader.asked = files(tmp_path), 0
    (tmp_path / "work" / "data" / manifest.store / manifest.shards[7].name).unlink()
    assert prepare(tmp_path, 3) == manifest
    assert reader.asked == 1 + 1  # the first row, and the lost shard
    assert files(tmp_path) == before


def test_bad_data_ends_the_preparation_and_every_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = IMAGES.copy()
    bad[100] = np.inf
    monkeypatch.setattr(sys.modules[__name__], "IMAGES", bad)
    with pytest.raises(DataError, match="input in row 100 of `train` has NaN or infinite values"):
        prepare(tmp_path, 3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("everstep")]
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_killed_preparation_is_resumed(tmp_path: Path, reader: Reader) -> None:
    code = "import sys, pathlib, tests.data.test_threads as t; t.prepare(pathlib.Path(sys.argv[1]), 3)"
    died = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"KILLED_AFTER": "15"},
    )
    assert died.returncode == -signal.SIGKILL
    done = len(list(tmp_path.rglob("train-*.safetensors")))
    assert 1 <= done <= 14
    prepare(tmp_path, 3)
    assert reader.asked == 1 + SHARDS - done
    prepare(tmp_path / "whole", 1)
    assert {name: content for name, content in files(tmp_path).items() if not name.endswith(".tmp")} == files(
        tmp_path / "whole"
    )
