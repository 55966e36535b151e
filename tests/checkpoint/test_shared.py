"""A checkpoint of several ranks is published whole or not at all, and is used by all of them or by none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.checkpoint.examples import DAMAGES, FINGERPRINT, FIRST, MEMORY, SECOND
from tests.support.crash import SURVIVED, fork_ranks
from tests.support.faults import FileFault, Mode
from workflow_lib import checkpoint
from workflow_lib.checkpoint import CheckpointStore, Snapshot, published
from workflow_lib.distributed.ranks import Peers
from workflow_lib.errors import RankError, SaveError, WorkspaceBusy

RANKS = 2
KILLED = -9


def store(folder: Path, peers: Peers, attempt: str = FIRST) -> CheckpointStore:
    return CheckpointStore(
        folder / "checkpoints", fingerprint=FINGERPRINT, attempt=attempt, may_publish=lambda: True, peers=peers
    )


def whole(step: int) -> torch.Tensor:
    return torch.arange(15.0).reshape(5, 3) + step


def snapshot(step: int, peers: Peers) -> Snapshot:
    """Return three rows for rank 0, two for rank 1, and the groups that only rank 0 has."""
    first, last = (0, 3) if peers.is_main else (3, 5)
    name = f"moving-{peers.rank:05d}-of-{peers.world_size:05d}"
    mine = {"model.weight": whole(step)[first:last]}
    offsets = {"model.weight": [first, 0]}
    if peers.is_main:
        mine["model.steps"], offsets["model.steps"] = torch.tensor(step), []
    ranks = {"ranks": {"0.loss_sum": torch.tensor(0.5)}} if peers.is_main else {}
    return Snapshot(step, {name: mine, **ranks}, {"step": step}, {"cursor": {"step": step}}, {name: offsets})


def save(folder: Path, peers: Peers, steps: tuple[int, ...] = (1, 2)) -> None:
    mine = store(folder, peers)
    mine.find_shared()
    for step in steps:
        mine.publish(snapshot(step, peers))


def find(folder: Path, peers: Peers) -> None:
    """Write, on each rank, the step that it would resume from."""
    found = store(folder, peers, SECOND).find_shared()
    (folder / f"found-{peers.rank}").write_text(str(found and found.step))


def found_by(folder: Path, ranks: int = RANKS) -> list[str]:
    """Return the step that each of the ranks would resume from; another number of ranks may have saved."""
    assert fork_ranks(ranks, partial(find, folder), folder / "meeting") == [SURVIVED] * ranks
    return [(folder / f"found-{rank}").read_text() for rank in range(ranks)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Create two checkpoints, of steps 1 and 2."""
    assert fork_ranks(RANKS, partial(save, tmp_path), tmp_path / "meeting") == [SURVIVED] * RANKS
    return tmp_path


def newest(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.read_manifest(published(folder / "checkpoints")[-1])


def test_the_manifest_names_the_files_of_all_ranks(saved: Path) -> None:
    names = ["moving-00000-of-00002.safetensors", "moving-00001-of-00002.safetensors"]
    found = newest(saved)
    assert sorted(found.manifest["files"]) == [*names, "ranks.safetensors", "state.json"]
    assert {path.name for path in found.path.iterdir()} == {*found.manifest["files"], "manifest.json"}
    checkpoint.verify(found)


def test_the_joined_parts_are_the_file_of_the_whole(saved: Path, tmp_path: Path) -> None:
    assembled = checkpoint.read_group_file(newest(saved), "model")
    assert assembled is not None
    alone = CheckpointStore(tmp_path / "alone", fingerprint={}, attempt=FIRST, may_publish=lambda: True)
    plain = alone.publish(Snapshot(2, {"model": {"weight": whole(2), "steps": torch.tensor(2)}}, {}))
    assert plain is not None
    assert assembled == (plain.path / "model.safetensors").read_bytes()
    assert torch.equal(load(assembled)["weight"], whole(2))


@pytest.mark.parametrize("file", ["moving-00000-of-00002", "moving-00001-of-00002", "ranks", "state", "manifest"])
@pytest.mark.parametrize("damage", ["a flipped bit", "a lost last byte", "no file"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_that_one_rank_finds_damaged_is_used_by_none(
    saved: Path, file: str, damage: str, ranks: int
) -> None:
    path = next(newest(saved).path.glob(f"{file}.*"))
    DAMAGES[damage](path)
    assert found_by(saved, ranks) == ["1"] * ranks
    assert len(list((saved / "checkpoints").glob("corrupt-*"))) == 1


def test_when_none_can_be_used_no_rank_starts_again(saved: Path) -> None:
    for path in published(saved / "checkpoints"):
        DAMAGES["a flipped bit"](path / "moving-00001-of-00002.safetensors")
    codes = fork_ranks(RANKS, partial(find, saved), saved / "meeting")
    assert SURVIVED not in codes
    assert not (saved / "found-0").exists()


def test_an_empty_store_has_no_checkpoint(tmp_path: Path) -> None:
    assert found_by(tmp_path) == ["None"] * RANKS


MODES: tuple[Mode, ...] = ("before", "torn", "unsynced", "unnamed")


def copies(original: Path) -> Iterator[Path]:
    """Yield fresh copies, and remove each before the next."""
    for number in count(1):
        place = original.with_name(f"copy-{number}")
        shutil.copytree(original, place)
        yield place
        shutil.rmtree(place)


@pytest.fixture
def prepared() -> Iterator[Path]:
    """Create a store with two checkpoints of several ranks; in memory if possible, where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        original = Path(folder) / "original"
        original.mkdir()
        assert fork_ranks(RANKS, partial(save, original), original / "meeting") == [SURVIVED] * RANKS
        yield original


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_rank_that_dies_at_any_operation_of_a_save_leaves_the_old_or_the_new_state(prepared: Path, rank: int) -> None:
    """A rank dies at each operation on a file of load, save and retention, in one of four ways."""
    struck = 0
    for number, place in enumerate(copies(prepared), start=1):
        files = f"{place}/checkpoints/*"
        fault = FileFault(path=files, count=number, rank=rank, mode=MODES[number % 4], part=0.5)
        codes = fork_ranks(RANKS, partial(save, place, steps=(3,)), place / "meeting", [fault])
        if codes[rank] == SURVIVED:
            break
        struck += 1
        assert codes[rank] == KILLED
        found = store(place, Peers(), SECOND).find_shared()
        assert found is not None
        assert found.step in ((2, 3) if rank == 0 else (2,))
        assert not list(place.glob("checkpoints/corrupt-*"))
    assert struck >= (25 if rank == 0 else 5)
    assert newest(place).step == 3


def refused(folder: Path, peers: Peers) -> None:
    """Let the save of step 3 fail, and the save of step 4 succeed."""
    mine = store(folder, peers)
    mine.find_shared()
    if peers.is_main:
        with pytest.raises(SaveError, match="No space left"):
            mine.publish(snapshot(3, peers))
        assert not list((folder / "checkpoints").glob(".t*"))
    else:
        mine.publish(snapshot(3, peers))
    mine.publish(snapshot(4, peers))


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("operation", ["open", "write", "fsync"])
def test_a_disk_that_fails_on_one_rank_fails_that_save_only(prepared: Path, rank: int, operation: str) -> None:
    fault = FileFault("ENOSPC", f"{prepared}/checkpoints/*", operation=operation, count=1, rank=rank)
    codes = fork_ranks(RANKS, partial(refused, prepared), prepared / "meeting", [fault])
    assert codes == [SURVIVED] * RANKS
    assert [checkpoint.read_manifest(path).step for path in published(prepared / "checkpoints")] == [2, 4]


def save_apart(folder: Path, peers: Peers) -> None:
    """Let rank 1 write to another disk."""
    mine = store(folder if peers.is_main else folder / "elsewhere", peers)
    if peers.is_main:
        with pytest.raises(SaveError, match="No such file"):
            mine.publish(snapshot(3, peers))
    else:
        (folder / "elsewhere" / "checkpoints" / f".tmp-step-{3:012d}.00000.{FIRST[:8]}").mkdir(parents=True)
        mine.publish(snapshot(3, peers))


def find_apart(folder: Path, peers: Peers) -> None:
    """Let rank 1 read from another disk, and record the error of rank 0."""
    try:
        store(folder if peers.is_main else folder / "elsewhere", peers).find_shared()
    except RankError as error:
        (folder / f"said-{peers.rank}").write_text(str(error))
        raise


def test_ranks_that_save_on_different_disks_publish_nothing(prepared: Path) -> None:
    assert fork_ranks(RANKS, partial(save_apart, prepared), prepared / "meeting") == [SURVIVED] * RANKS
    assert [checkpoint.read_manifest(path).step for path in published(prepared / "checkpoints")] == [1, 2]


def test_a_checkpoint_that_only_another_rank_cannot_read_is_not_renamed(prepared: Path) -> None:
    assert SURVIVED not in fork_ranks(RANKS, partial(find_apart, prepared), prepared / "meeting")
    assert "rank 1 cannot use" in (prepared / "said-0").read_text()
    assert [checkpoint.read_manifest(path).step for path in published(prepared / "checkpoints")] == [1, 2]


def taken_over(folder: Path, peers: Peers) -> None:
    """Let another attempt take over the workspace when the files of all ranks are written."""
    answers = iter([True, False])
    mine = CheckpointStore(
        folder / "checkpoints",
        fingerprint=FINGERPRINT,
        attempt=FIRST,
        may_publish=lambda: next(answers),
        peers=peers,
    )
    mine.find_shared()
    if peers.is_main:
        with pytest.raises(WorkspaceBusy):
            mine.publish(snapshot(3, peers))
    else:
        mine.publish(snapshot(3, peers))


def test_ranks_of_a_late_owner_cannot_publish(prepared: Path) -> None:
    assert fork_ranks(RANKS, partial(taken_over, prepared), prepared / "meeting") == [SURVIVED] * RANKS
    assert newest(prepared).step == 2
    assert not list(prepared.glob("checkpoints/.t*"))
