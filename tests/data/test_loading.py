"""Loading from memory and from mapped shards gives the same bits, and the same weights after training."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.damage import cut_off, flip, swap
from tests.support.prepared import Prepare, given, language, prepared, regression, table, trained
from tests.support.repository import ROOT
from workflow_lib import data
from workflow_lib.data import Manifest, MappedSplit, Split, loader
from workflow_lib.data.view import view_split
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.errors import DataError
from workflow_lib.training import snapshot
from workflow_lib.training.trainer import Trainer

__all__ = ["prepared"]

RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 256, (90, 3, 5, 4)).astype(np.uint8)


def images() -> data.Source:
    return given(IMAGES, np.arange(90) % 3, classes=("a", "b", "c"), scale=255.0)


def both(manifest: Manifest, split: str, folder: Path, workers: int = 2) -> tuple[Split, MappedSplit]:
    held = data.load_split(manifest, split, folder / "work", in_memory=True)
    mapped = data.load_split(manifest, split, folder / "work", in_memory=False, workers=workers)
    assert isinstance(mapped, MappedSplit)
    return held, mapped


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("everstep-loader")]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("make", [images, language, regression, table])
def test_mapped_shards_give_the_same_bits_as_memory(
    make: Callable[[], data.Source], workers: int, prepared: Prepare, tmp_path: Path
) -> None:
    manifest = prepared(make(), shard_samples=7)
    for name in data.SPLITS:
        held, mapped = both(manifest, name, tmp_path, workers)
        count = len(held)
        assert len(mapped) == count
        assert torch.equal(held.targets, mapped.targets)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        many = [*order.split(4), order, torch.tensor([2, 2, 0]), slice(1, 3), slice(count - 2, count + 9)]
        found = list(mapped.stream(many))
        for rows, (inputs, targets), (streamed, _) in zip(many, map(held.batch, many), found, strict=True):
            for given_inputs, given_targets in (mapped.batch(rows), (streamed, targets)):
                assert given_inputs.dtype == inputs.dtype
                assert torch.equal(given_inputs.view(torch.uint8), inputs.view(torch.uint8))
                assert torch.equal(given_targets, targets)
    assert threads() == []


@pytest.mark.parametrize("make", [images, language, regression, table])
def test_a_view_has_the_bits_that_models_get(
    make: Callable[[], data.Source], prepared: Prepare, tmp_path: Path
) -> None:
    manifest = prepared(make(), shard_samples=7)
    held = data.load_split(manifest, "train", tmp_path / "work", in_memory=True)
    view = view_split(manifest, "train", tmp_path / "work")
    assert len(view) == len(held)
    for number in range(len(held)):
        inputs, targets = (values[0].numpy() for values in held.batch(slice(number, number + 1)))
        found = view.stored(number) if manifest.has_tokens else view.normalised(number)
        assert np.array_equal(found.astype(inputs.dtype).view(np.uint8), inputs.view(np.uint8))
        assert view.target(number).tobytes() == targets.tobytes()


def test_a_stream_that_is_closed_early_leaves_no_thread(prepared: Prepare, tmp_path: Path) -> None:
    _, mapped = both(prepared(images(), shard_samples=7), "train", tmp_path, workers=3)
    many = torch.arange(len(mapped)).split(2)
    closed = mapped.stream(many)
    next(closed)
    assert threads()
    closed.close()
    assert threads() == []

    def interrupted() -> None:
        for _ in mapped.stream(many):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()
    assert threads() == []


def test_an_error_in_a_thread_is_raised(prepared: Prepare, tmp_path: Path) -> None:
    _, mapped = both(prepared(images()), "train", tmp_path)
    with pytest.raises(IndexError):
        list(mapped.stream([torch.tensor([0]), torch.tensor([len(mapped)])]))
    assert threads() == []


def test_threads_prefetch_only_a_few_batches(prepared: Prepare, tmp_path: Path) -> None:
    _, mapped = both(prepared(images()), "train", tmp_path, workers=2)
    asked: list[int] = []

    def rows() -> Iterator[torch.Tensor]:
        for row in range(len(mapped)):
            asked.append(row)
            yield torch.tensor([row])

    stream = mapped.stream(rows())
    for served in range(1, 20):
        next(stream)
        assert len(asked) <= served + 2 * 2
    stream.close()


# Damage


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


DAMAGE = [Path.unlink, cut_off, flip, swap, _write(b""), _write(b"\xff" * 500), _write(b"\2\0\0\0\0\0\0\0{}")]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_never_mapped(
    damage: Callable[[Path], object], workers: int, prepared: Prepare, tmp_path: Path
) -> None:
    manifest = prepared(images())
    path = tmp_path / "work" / "data" / manifest.store / manifest.shards[1].name
    damage(path)
    with pytest.raises(DataError, match=f"{path.name}: the shard is damaged or missing; run preprocess again"):
        data.load_split(manifest, "train", tmp_path / "work", in_memory=False, workers=workers)
    assert threads() == []


def test_the_ranks_verify_every_shard_between_them(prepared: Prepare, tmp_path: Path) -> None:
    manifest = prepared(images(), shard_samples=7)
    for shard in (shard for shard in manifest.shards if shard.split == "train"):
        path = tmp_path / "work" / "data" / manifest.store / shard.name
        whole = path.read_bytes()
        flip(path)
        rejected = 0
        for rank in range(3):
            try:
                data.load_split(
                    manifest, "train", tmp_path / "work", in_memory=False, ranks=Ranks(rank=rank, world_size=3)
                )
            except DataError:
                rejected += 1
        assert rejected == 1
        path.write_bytes(whole)


@pytest.mark.parametrize("in_memory", [True, False])
def test_tick_is_called_for_every_shard(in_memory: bool, prepared: Prepare, tmp_path: Path) -> None:
    manifest = prepared(images(), shard_samples=7)
    ticks: list[int] = []
    data.load_split(manifest, "train", tmp_path / "work", in_memory=in_memory, tick=lambda: ticks.append(1))
    assert len(ticks) == sum(shard.split == "train" for shard in manifest.shards)


# The choice


def test_by_default_the_size_decides_where_samples_are(
    prepared: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "workflow_lib.data")
    manifest = prepared(images())
    train = data.load_split(manifest, "train", tmp_path / "work")
    assert isinstance(train, Split)
    assert "train: 0.0 MB in memory, on cpu" in caplog.text
    huge = manifest.splits["train"].model_copy(update={"samples": 10**13})
    larger = manifest.model_copy(update={"splits": manifest.splits | {"train": huge}})
    assert isinstance(data.load_split(larger, "train", tmp_path / "work"), MappedSplit)
    assert "train: 2,400,000.0 GB are read from 3 shards by 2 threads" in caplog.text


def test_processes_of_a_node_share_its_memory() -> None:
    cpu = torch.device("cpu")
    alone, shared = (loader.available_bytes(cpu, processes) for processes in (1, 1000))
    assert 0 < shared < alone / 100


# Training


class StopsAt(SharedState):
    """Stops the run after a number of steps, as a signal does."""

    def __init__(self, step: int) -> None:
        super().__init__(1)
        self._last = step

    def tick(self, local_rank: int, step: int) -> None:
        super().tick(local_rank, step)
        if step == self._last:
            self._handle(15, None)


def test_training_from_memory_and_from_shards_gives_the_same_bits(prepared: Prepare, tmp_path: Path) -> None:
    manifest = prepared(images(), shard_samples=7)
    held = trained(manifest, tmp_path, SharedState(1), workspace="memory", in_memory=True)
    assert held.state.progress.cursor.step == 2 * (59 // 16)
    for workers in (0, 3):
        mapped = trained(manifest, tmp_path, SharedState(1), workspace=f"{workers}", in_memory=False, workers=workers)
        assert _bits(mapped) == _bits(held)
    assert threads() == []


@pytest.mark.parametrize("augment", [None, {"mixup": 0.4}, {"cutmix": 1.0, "shift": 0.2}])
def test_threads_prefetch_all_rows_of_a_step(
    augment: dict[str, Any] | None, prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the rows to mix with, which are known in advance."""
    readers: list[str] = []
    take = MappedSplit._copy_rows

    def watched(self: MappedSplit, *asked: Any) -> None:
        readers.append(threading.current_thread().name)
        take(self, *asked)

    monkeypatch.setattr(MappedSplit, "_copy_rows", watched)
    trained(prepared(images()), tmp_path, SharedState(1), workspace="one", augment=augment, in_memory=False, workers=2)
    assert readers
    assert all(name.startswith("everstep-loader") for name in readers)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_training_from_memory_is_resumed_from_shards(stop: int, prepared: Prepare, tmp_path: Path) -> None:
    manifest = prepared(images(), shard_samples=7)
    whole = trained(manifest, tmp_path, SharedState(1), workspace="whole", in_memory=True)
    stopped = trained(manifest, tmp_path, StopsAt(stop), workspace="parts", in_memory=False, workers=2)
    assert stopped.state.progress.cursor.step == stop
    assert threads() == []
    stopped = trained(manifest, tmp_path, StopsAt(stop + 1), workspace="parts", in_memory=True)
    assert stopped.state.progress.cursor.step == stop + 1
    assert _bits(trained(manifest, tmp_path, SharedState(1), workspace="parts", in_memory=False)) == _bits(whole)


def _bits(trainer: Trainer) -> dict[str, Any]:
    tensors = {
        f"{group}.{name}": tensor.detach().numpy().tobytes()
        for group, named in snapshot.tensors(trainer.state).items()
        for name, tensor in named.items()
    }
    return {**tensors, "history": trainer.state.progress.history}


def test_data_larger_than_the_memory_is_prepared_and_trained_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.bounded", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    stored = sum(path.stat().st_size for path in (tmp_path / "work").rglob("*.safetensors"))
    assert stored > 2 * result["room"]
    assert result["steps"] == 26_000 // 64
    assert result["refused in one shard"]
    assert result["refused in memory"]
