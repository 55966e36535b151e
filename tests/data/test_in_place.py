"""Files that are read in place: digests of parts survive kills, and equal content is equal data."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.crash import run_forked
from tests.support.faults import FileFault, Mode
from workflow_lib import data
from workflow_lib.data import MappedFiles, in_place, mapped_files, names, part_digests
from workflow_lib.errors import ConfigError, DataError

SETTINGS = {"name": "tokens", "params": {"path": "texts", "vocabulary": 1000, "context": 8}}
PARTS = 40  # of each file
MODES: tuple[Mode, ...] = ("before", "torn", "unnamed")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide files into parts of 1 KiB, and segments of 4 parts."""
    for module in (mapped_files, part_digests):
        monkeypatch.setattr(module, "PART_BYTES", 1 << 10)
    monkeypatch.setattr(part_digests, "SEGMENT_PARTS", 4)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 1000, 512 * PARTS - 7 * number)
        values.astype(np.uint16).tofile(folder / f"{number}.bin")
    return folder


def read_parts(folder: Path, texts: Path, threads: int = 1, die_at: int | None = None) -> tuple[Any, int]:
    """Return the digests, and the number of parts that were read for them."""
    seen: list[int] = []

    def check(number: int, start: int, content: memoryview) -> None:
        seen.append(start)
        if len(seen) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    files = MappedFiles(sorted(texts.iterdir()), check)
    return part_digests.part_digests(files, "made by", folder / "parts", threads), len(seen)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("threads", [1, 3])
def test_finished_segments_are_not_read_again_after_a_kill(tmp_path: Path, texts: Path, threads: int) -> None:
    whole, count = read_parts(tmp_path / "whole", texts, threads)
    assert count == 2 * PARTS
    for die_at in (1, 6, 11, 18):
        assert run_forked(lambda at=die_at: read_parts(tmp_path, texts, threads, at)) == -signal.SIGKILL  # type: ignore[misc]
    digests, read = read_parts(tmp_path, texts, threads)
    done = 2 * PARTS - read
    assert done >= 4 * (0 + 1 + 2 + 4) - 4 * 4 * (threads - 1)
    assert done % 4 == 0
    assert all(np.array_equal(*pair) for pair in zip(digests, whole, strict=True))
    assert read_parts(tmp_path, texts)[1] == 0


def test_a_file_of_a_single_part_has_no_record(tmp_path: Path, texts: Path) -> None:
    first, read = read_parts(tmp_path, texts)
    again, read_again = read_parts(tmp_path, texts)
    assert (read, read_again) == (2, 2)
    assert not (tmp_path / "parts").exists()
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.usefixtures("small_parts")
def test_a_changed_file_is_read_again(tmp_path: Path, texts: Path) -> None:
    before, _ = read_parts(tmp_path, texts)
    path = texts / "0.bin"
    path.write_bytes(path.read_bytes()[::-1])
    after, read = read_parts(tmp_path, texts)
    assert read == PARTS
    assert not np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_record_is_made_again(tmp_path: Path, texts: Path) -> None:
    before, _ = read_parts(tmp_path, texts)
    records = sorted((tmp_path / "parts").rglob("*.json"))
    records[0].write_text(records[0].read_text().replace("a", "b"))
    records[1].write_text("{}")
    records[2].unlink()
    after, read = read_parts(tmp_path, texts)
    assert 0 < read <= 12
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.usefixtures("small_parts")
def test_only_parts_that_are_read_are_verified_and_once(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, _ = read_parts(tmp_path, texts)
    files = MappedFiles(sorted(texts.iterdir()))
    files.verify_with(files.sizes, digests)
    verified: list[int] = []
    monkeypatch.setattr(mapped_files, "digest_of", lambda content: verified.append(1) or DIGEST(content))
    content = (texts / "0.bin").read_bytes()
    for start, stop in ((0, 10), (1000, 1030), (5, 1024), (PARTS * 1024 - 3, PARTS * 1024)):
        assert bytes(files.view(0, start, stop)) == content[start:stop]
    assert len(verified) == 3
    with pytest.raises(DataError, match=f"has {PARTS * 1024} bytes"):
        files.view(0, 0, PARTS * 1024 + 1)


DIGEST: Callable[[bytes | memoryview], bytes] = mapped_files.digest_of


def test_many_files_are_not_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_files, "MOST_OPEN", 5)
    paths = [tmp_path / f"{number}.bin" for number in range(50)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 3)
    files = MappedFiles(paths)
    assert [bytes(files.view(number, 0, 3))[0] for number in range(50)] == list(range(50))
    assert sum(str(tmp_path) in os.readlink(f"/proc/self/fd/{name}") for name in _descriptors()) == 5
    files.close()
    assert not any(str(tmp_path) in os.readlink(f"/proc/self/fd/{name}") for name in _descriptors())


def _descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]


@pytest.mark.usefixtures("small_parts")
def test_a_killed_preparation_ends_as_an_uninterrupted_one(tmp_path: Path, texts: Path) -> None:
    whole = data.prepare(SETTINGS, tmp_path, tmp_path / "whole")
    for path in ("*/parts/*3.json*", "*/parts/*9.json*", "*/data/*index.safetensors*", "*/data/*manifest.json*"):
        for mode in MODES:
            assert (
                run_forked(
                    lambda: data.prepare(SETTINGS, tmp_path, tmp_path / "work"), [FileFault(mode, path, rank=-1)]
                )
                < 0
            )
    assert data.prepare(SETTINGS, tmp_path, tmp_path / "work") == whole


def test_equal_content_at_another_place_is_equal_data(tmp_path: Path, texts: Path) -> None:
    first = data.prepare(SETTINGS, tmp_path, tmp_path / "work")
    texts.rename(tmp_path / "moved")
    moved = {**SETTINGS, "params": {**SETTINGS["params"], "path": "moved"}}  # type: ignore[dict-item]
    second = data.prepare(moved, tmp_path, tmp_path / "work")
    assert second.digest == first.digest


def test_settings_that_change_the_samples_are_other_data(tmp_path: Path, texts: Path) -> None:
    found = set()
    for params in ({}, {"context": 9}, {"stride": 3}, {"separator": 5, "cross_documents": False}):
        given = {**SETTINGS, "params": {**SETTINGS["params"], **params}}  # type: ignore[dict-item]
        found.add(data.prepare(given, tmp_path, tmp_path / "work").digest)
    assert len(found) == 4


def test_samples_are_named_by_file_and_token_or_in_runs_of_rows(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results" / "x.json"
    manifest = data.prepare(SETTINGS, tmp_path, tmp_path / "work", output=output)
    named = names.names_of_split(output, data.Manifest.load(output), "test") or {}
    test = in_place.open_split(manifest, manifest.in_place, "test", tmp_path / "work", tmp_path)
    windows = test.inputs(np.arange(len(test)))
    for place, (file, token) in enumerate(zip(named["file"], named["token"], strict=True)):
        content = np.fromfile(texts / file, np.uint16)
        assert content[int(token) : int(token) + 9].tolist() == windows[place].tolist()
    monkeypatch.setattr(names, "MOST_LISTED", 10)
    data.prepare(SETTINGS, tmp_path, tmp_path / "work", output=output)
    named = names.names_of_split(output, data.Manifest.load(output), "test") or {}
    assert [int(row) for row in named["row"]] == test.rows[np.arange(len(test))].tolist()


def test_many_rows_are_divided_in_runs(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "MOST_DRAWN", 1000)
    manifest = data.prepare(SETTINGS, tmp_path, tmp_path / "work")
    splits = {
        name: in_place.open_split(manifest, manifest.in_place, name, tmp_path / "work", tmp_path)
        for name in data.SPLITS
    }
    rows = {name: split.rows[np.arange(len(split))] for name, split in splits.items()}
    total = sum(map(len, rows.values()))
    assert np.sort(np.concatenate([*rows.values()])).tolist() == list(range(total))
    assert len(rows["val"]) == round(0.15 * total)
    assert len(rows["test"]) == round(0.2 * total)
    with pytest.raises(ConfigError, match=r"data.folds: folds are drawn row by row, and of data read in place only"):
        data.prepare({**SETTINGS, "folds": 5, "fold": 0}, tmp_path, tmp_path / "work")
    runs = splits["val"].rows.runs
    assert (runs[:, 1] - runs[:, 0]).min() >= 16
