"""A save blocks the training only for the copy; a failing disk does not end the training, a takeover does."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.crash import SURVIVED, run_forked
from tests.support.faults import FileFault
from tests.support.late import Runtime, imitate_device
from workflow_lib.checkpoint import CheckpointStore, Snapshot, slab
from workflow_lib.checkpoint.saver import MAX_INTERVAL_S, MIN_INTERVAL_S, Saver, auto_interval_s
from workflow_lib.errors import SaveError, WorkspaceBusy

FINGERPRINT = {"run": "a" * 32}


class Gate:
    """Lets the attempt publish once the test opens it."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.asked = threading.Event()
        self.answer = True

    def __call__(self) -> bool:
        self.asked.set()
        self.is_open.wait(300)
        return self.answer


def store(directory: Path, may_publish: Callable[[], bool] = lambda: True) -> CheckpointStore:
    return CheckpointStore(
        directory / "checkpoints", fingerprint=FINGERPRINT, attempt="1" * 32, may_publish=may_publish
    )


def saver(of: CheckpointStore, clock: Callable[[], float] = lambda: 0.0, **options: Any) -> Saver:
    settings = {"interval_s": 60.0, "interval_steps": None, "mtbf_s": 14400.0, **options}
    return Saver(of, clock=clock, **settings)


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((4,), value), "b": torch.full((), value, dtype=torch.bfloat16)}}


def loaded(directory: Path) -> tuple[int, float, dict[str, Any]]:
    found = store(directory).load_latest()
    assert found is not None
    return found[0].step, float(found[1].tensors["model"]["w"][0]), dict(found[1].state)


def test_changes_after_the_start_are_not_in_the_save(tmp_path: Path) -> None:
    gate = Gate()
    mine, weights, state = saver(store(tmp_path, gate)), groups(1.0), {"step": 1}
    mine.start(Snapshot(1, weights, state))
    assert gate.asked.wait(300)
    weights["model"]["w"].fill_(2.0)
    state["step"] = 2
    gate.is_open.set()
    mine.wait()
    assert loaded(tmp_path) == (1, 1.0, {"step": 1})


def test_the_training_continues_while_a_save_is_written_and_no_other_is_due(tmp_path: Path) -> None:
    gate = Gate()
    mine = saver(store(tmp_path, gate), interval_steps=1)
    mine.begin_at(0, None)
    assert mine.is_due(1)
    mine.start(Snapshot(1, groups(1.0), {}))
    assert gate.asked.wait(300)
    assert not mine.is_due(9)
    gate.is_open.set()
    mine.wait()
    assert mine.is_due(9)


def test_the_memory_of_the_copies_is_reused(tmp_path: Path) -> None:
    mine = saver(store(tmp_path))
    for step in (1, 2):
        mine.start(Snapshot(step, groups(float(step)), {}))
        mine.wait()
        place = mine._memory._memory.data_ptr()
        if step == 1:
            first = place
    assert place == first
    assert loaded(tmp_path)[:2] == (2, 2.0)


def test_a_save_that_started_in_inference_mode_spoils_no_later_save(tmp_path: Path) -> None:
    mine = saver(store(tmp_path))
    with torch.inference_mode(), torch.inference_mode(False):
        mine.start(Snapshot(1, groups(1.0), {}))
    mine.start(Snapshot(2, groups(2.0), {}))
    mine.wait()
    assert loaded(tmp_path)[0] == 2


def test_tensors_that_take_another_shape_are_copied_too(tmp_path: Path) -> None:
    mine = saver(store(tmp_path))
    mine.start(Snapshot(1, groups(1.0), {}))
    mine.start(Snapshot(2, {"model": {"w": torch.full((7, 2), 3.0)}}, {}))
    mine.wait()
    found = store(tmp_path).load_latest()
    assert found is not None
    assert found[1].tensors["model"]["w"].shape == (7, 2)


def test_a_save_is_due_after_the_configured_steps_or_seconds(tmp_path: Path) -> None:
    now = 100.0
    by_steps = saver(store(tmp_path), lambda: now, interval_steps=5)
    by_time = saver(store(tmp_path), lambda: now, interval_s=30.0)
    for one in (by_steps, by_time):
        one.begin_at(10, None)
    assert [step for step in range(10, 20) if by_steps.is_due(step)] == [15, 16, 17, 18, 19]
    assert not by_time.is_due(19)
    now = 130.0
    assert by_time.is_due(11)
    by_time.start(Snapshot(11, groups(1.0), {}))
    by_time.wait()
    assert not by_time.is_due(12)


def test_a_failing_disk_does_not_stop_the_training_and_the_next_save_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        mine = saver(store(tmp_path), interval_steps=2)
        mine.start(Snapshot(1, groups(1.0), {}))
        mine.wait()
        for step in (3, 5):
            assert mine.is_due(step)
            mine.start(Snapshot(step, groups(float(step)), {}))
            mine.wait()
            assert not mine.is_due(step + 1)
            assert mine.latest is not None
            assert mine.latest.step == {3: 1, 5: 5}[step]
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1
        assert "No space left on device" in lines[0]
        assert "Training continues" in lines[0]

    with caplog.at_level(logging.WARNING):
        assert run_forked(work, [FileFault("ENOSPC", f"{tmp_path}/*/.tmp-step-000000000003*", rank=-1)]) == SURVIVED
    assert loaded(tmp_path)[0] == 5


def test_a_failure_of_the_last_save_is_an_error_and_leaves_the_save_before(tmp_path: Path) -> None:
    def work() -> None:
        mine = saver(store(tmp_path))
        mine.start(Snapshot(1, groups(1.0), {}))
        with pytest.raises(SaveError, match="step 2.*Input/output error"):
            mine.finish(Snapshot(2, groups(2.0), {}))

    fault = FileFault("EIO", f"{tmp_path}/*/.tmp-step-000000000002*", operation="fsync", rank=-1, times=0)
    assert run_forked(work, [fault]) == SURVIVED
    assert loaded(tmp_path)[:2] == (1, 1.0)


def test_the_last_save_waits_for_a_running_save(tmp_path: Path) -> None:
    mine = saver(store(tmp_path))
    mine.start(Snapshot(1, groups(1.0), {}))
    last = mine.finish(Snapshot(2, groups(2.0), {}))
    assert (last.serial, mine.saves) == (1, 2)
    assert loaded(tmp_path)[:2] == (2, 2.0)


def test_a_takeover_that_a_save_in_the_background_finds_ends_the_training(tmp_path: Path) -> None:
    mine = saver(store(tmp_path, lambda: False))
    mine.begin_at(0, None)
    mine.start(Snapshot(1, groups(1.0), {}))
    with pytest.raises(WorkspaceBusy):
        mine.wait()
    assert mine.is_due(1)
    for end in (mine.start, mine.finish):
        with pytest.raises(WorkspaceBusy):
            end(Snapshot(2, groups(2.0), {}))
    assert not os.listdir(tmp_path / "checkpoints")


def test_the_cost_of_saves_is_measured(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    mine = saver(store(tmp_path), lambda: float(next(ticks)))
    mine.start(Snapshot(1, groups(1.0), {}))
    mine.wait()
    assert mine.saves == 1
    assert mine.blocked_s > 0
    assert mine.longest_write_s > 0


def test_the_automatic_interval_is_youngs_between_its_bounds() -> None:
    assert auto_interval_s(0.02, 0.1, 14400) == pytest.approx(24.0)
    assert auto_interval_s(2.0, 3.0, 14400) == pytest.approx(240.0)
    assert auto_interval_s(1e-6, 0.001, 14400) == MIN_INTERVAL_S
    assert auto_interval_s(1e-6, 40.0, 14400) == 80.0
    assert auto_interval_s(60.0, 60.0, 14400) == MAX_INTERVAL_S


def test_youngs_interval_loses_least(tmp_path: Path) -> None:
    """The loss of time per second: one save in every interval, and half an interval repeated at each failure."""
    blocked_s, mtbf_s = 0.5, 7200.0
    best = auto_interval_s(blocked_s, 0.5, mtbf_s)

    def loss(every_s: float) -> float:
        return blocked_s / every_s + every_s / (2 * mtbf_s)

    assert loss(best) <= min(loss(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


GPU = torch.device("cuda", 3)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated device that copies as late as possible."""
    imitate_device(monkeypatch.setattr)


def test_a_gpu_is_waited_for_before_its_tensors_change(tmp_path: Path, gpu: None) -> None:
    mine, weights = saver(store(tmp_path), device=GPU), groups(1.0)
    mine.start(Snapshot(1, weights, {}))
    mine.wait_copied()
    weights["model"]["w"].fill_(2.0)
    mine.wait()
    assert loaded(tmp_path)[:2] == (1, 1.0)


def test_memory_that_was_reserved_is_pinned_once_and_has_the_size_of_the_state(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[int] = []

    def register(self: Runtime, pointer: int, size: int, flags: int) -> int:
        pinned.append(size)
        return 0

    monkeypatch.setattr(Runtime, "cudaHostRegister", register)
    mine, odd = saver(store(tmp_path), device=GPU), {"model": {"w": torch.ones(1_000_001), "n": torch.ones(())}}
    mine.reserve({"model": {name: one.to("meta") for name, one in odd["model"].items()}})
    assert len(pinned) == 1
    assert 4_000_004 <= pinned[0] < 4_000_004 + 4 * 64
    for step in (1, 2):
        mine.start(Snapshot(step, odd, {}))
    mine.wait()
    assert len(pinned) == 1
    assert mine._memory.is_pinned


def test_memory_that_cannot_be_pinned_only_causes_a_warning(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Runtime, "code", 2)
    monkeypatch.setattr(slab, "_forget_error", lambda device: None)  # would launch a kernel
    mine = saver(store(tmp_path), device=GPU)
    for step in (1, 2):
        mine.start(Snapshot(step, groups(float(step)), {}))
        mine.wait()
    assert loaded(tmp_path)[:2] == (2, 2.0)
    assert [record.getMessage() for record in caplog.records if "cannot be pinned" in record.getMessage()] == [
        "0.0 MB of host memory cannot be pinned (CUDA error 2): saves will block longer"
    ]


def test_a_save_is_written_by_a_thread_on_the_gpu_of_its_rank(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda to: bound.append((threading.current_thread().name, to)))
    mine = saver(store(tmp_path), device=GPU)
    mine.start(Snapshot(1, groups(1.0), {}))
    mine.wait()
    assert bound == [("saver", GPU)]


def test_tensors_that_a_gpu_still_copies_are_not_freed(tmp_path: Path, gpu: None) -> None:
    """Freed memory would be reused by the next step, which writes into it before it is copied."""
    mine, weights = saver(store(tmp_path), device=GPU), groups(1.0)
    kept = weakref.ref(weights["model"]["w"])
    mine.start(Snapshot(1, weights, {}))
    del weights
    assert kept() is not None
    mine.wait()
    assert kept() is None


def test_pinned_memory_is_unpinned_before_it_is_freed(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA would otherwise believe that the next memory at this address is pinned."""
    unpinned: list[int] = []
    monkeypatch.setattr(Runtime, "cudaHostUnregister", lambda self, pointer: unpinned.append(pointer))
    memory = slab.Slab(GPU)
    memory.reserve(groups(1.0))
    pointer = memory._memory.data_ptr()
    del memory
    assert unpinned == [pointer]
