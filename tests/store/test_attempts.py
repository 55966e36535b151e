import json
import os
import time
from pathlib import Path

import pytest

from workflow_lib.distributed import shared_state
from workflow_lib.runtime.clock import now_s, start_s
from workflow_lib.store import attempts, layout


def test_creating_a_workspace_again_keeps_its_content(tmp_path: Path) -> None:
    attempts.create(tmp_path / "run")
    existing = layout.checkpoints_dir(tmp_path / "run") / "step-1"
    existing.mkdir()
    attempts.create(tmp_path / "run")
    assert existing.is_dir()
    assert layout.attempts_dir(tmp_path / "run").is_dir()
    assert layout.leases_dir(tmp_path / "run").is_dir()


def test_an_attempt_is_recorded_when_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    name = attempts.new_attempt()
    began = attempts.begin(tmp_path, name, world_size=2, resumed_step=7)
    assert attempts.read_attempt(tmp_path, name) == began
    assert (began.pid, began.start_time) == (os.getpid(), start_s(os.getpid()))
    assert (began.state, began.job, began.world_size, began.resumed_step) == ("running", "42", 2, 7)
    assert began.is_alive_here()


def test_the_end_adds_the_reason_and_keeps_the_earlier_values(tmp_path: Path) -> None:
    name = attempts.new_attempt()
    attempts.begin(tmp_path, name, resumed_step=3, devices=2, cpus=3)
    rank = attempts.RankProcess.of(0, os.getpid())
    attempts.record_ranks(tmp_path, name, [rank])
    attempts.end(tmp_path, name, "preempted", step=12)
    (record,) = attempts.list_attempts(tmp_path)
    assert (record.state, record.reason, record.step, record.resumed_step) == ("ended", "preempted", 12, 3)
    assert record.ranks == (rank,)
    assert record.ended is not None
    assert record.ended >= record.began
    assert record.seconds is not None
    assert record.gpu_seconds == pytest.approx(2 * record.seconds)
    assert record.cpu_seconds == pytest.approx(3 * record.seconds)


def test_the_wait_for_a_gpu_is_not_counted_as_used(tmp_path: Path) -> None:
    names = [attempts.new_attempt() for _ in range(2)]
    for name, waited_s in zip(names, (0.0, 0.4 * (now_s() - start_s(os.getpid()))), strict=True):
        attempts.begin(tmp_path, name, devices=2, waited_s=waited_s)
    step_range = shared_state.StepRange(0, 3, now_s())
    at_once, waited = (attempts.end(tmp_path, name, "finished", step_range=step_range) for name in names)
    assert at_once.seconds is not None
    assert waited.seconds is not None
    assert waited.seconds < 0.7 * at_once.seconds
    assert waited.gpu_seconds == pytest.approx(2 * waited.seconds)
    assert at_once.ready_s is not None
    assert waited.ready_s == pytest.approx(at_once.ready_s - waited.waited_s)


def test_setting_the_clock_back_does_not_shorten_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = attempts.new_attempt()
    attempts.begin(tmp_path, name)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    record = attempts.end(tmp_path, name, "finished")
    assert record.seconds is not None
    assert 0 < record.seconds <= now_s()


def test_attempts_are_listed_in_order_regardless_of_clocks(tmp_path: Path) -> None:
    names = [attempts.new_attempt() for _ in range(4)]
    for second, name in enumerate(names):
        attempts.begin(tmp_path, name)
        path = layout.attempts_dir(tmp_path) / f"{name}.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"began": f"2026-01-01T00:00:0{9 - second}.000Z"}))
    assert [record.attempt for record in attempts.list_attempts(tmp_path)] == names


def test_a_damaged_record_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = attempts.new_attempt()
    attempts.begin(tmp_path, name)
    (layout.attempts_dir(tmp_path) / "torn.json").write_text('{"attempt": "to')
    (layout.attempts_dir(tmp_path) / "other.json").write_text("[]")
    whole = json.loads((layout.attempts_dir(tmp_path) / f"{name}.json").read_text())
    (layout.attempts_dir(tmp_path) / "types.json").write_text(json.dumps(whole | {"began": None}))
    assert [record.attempt for record in attempts.list_attempts(tmp_path)] == [name]
    assert all(f"{damaged}.json" in caplog.text for damaged in ("torn", "other", "types"))


def test_a_record_of_a_later_version_can_be_read(tmp_path: Path) -> None:
    began = attempts.begin(tmp_path, attempts.new_attempt())
    path = layout.attempts_dir(tmp_path) / f"{began.attempt}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"carbon_g": 3.1}))
    assert attempts.read_attempt(tmp_path, began.attempt) == began


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"boot": "an earlier boot"}, {"machine": "a container"}])
def test_a_process_of_another_host_boot_or_container_is_not_alive_here(tmp_path: Path, other: dict[str, str]) -> None:
    began = attempts.begin(tmp_path, attempts.new_attempt())
    path = layout.attempts_dir(tmp_path) / f"{began.attempt}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    assert not attempts.read_attempt(tmp_path, began.attempt).is_alive_here()
