import json
import logging
import multiprocessing
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflow_lib.distributed.ranks import Ranks
from workflow_lib.store.events import NAME, EventLog, Follower, open_log, read_events

LAUNCHER = Ranks(is_launcher=True)
SECOND = Ranks(rank=1, local_rank=1, world_size=2)


@pytest.fixture
def events(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl", attempt="a1")


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    before = list(logging.getLogger(NAME).handlers), logging.getLogger(NAME).level
    yield
    assert (logging.getLogger(NAME).handlers, logging.getLogger(NAME).level) == before


def test_a_message_is_one_plain_line_and_one_event(events: EventLog, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log("info", LAUNCHER, events) as log:
        log.info("epoch %d", 3)
        log.warning("slow")
        log.debug("not shown")
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "info  epoch 3",
        "warn  slow",
    ]
    recorded = [
        (event["kind"], event["level"], event["message"], event["attempt"]) for event in read_events(events.path)
    ]
    assert recorded == [("log", "info", "epoch 3", "a1"), ("log", "warning", "slow", "a1")]


def test_other_ranks_than_0_log_only_warnings_with_their_rank(
    events: EventLog, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log("info", SECOND, events) as log:
        log.info("epoch 3")
        log.warning("late")
    assert capsys.readouterr().err.splitlines()[0].endswith("warn  [rank 1] late")
    assert [event["message"] for event in read_events(events.path)] == ["late"]


def test_a_log_opened_twice_writes_a_message_once(events: EventLog, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log("info", LAUNCHER, events), open_log("info", LAUNCHER, events) as log:
        log.info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert len(read_events(events.path)) == 1


def test_closing_an_inner_log_restores_the_outer_log(events: EventLog, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log("info", LAUNCHER, events) as log:
        with open_log("error", SECOND, events):
            log.warning("hidden")
        log.info("back")
    assert [event["message"] for event in read_events(events.path)] == ["back"]
    assert "back" in capsys.readouterr().err


def test_a_log_is_closed_if_its_block_raises(events: EventLog) -> None:
    with pytest.raises(ZeroDivisionError), open_log("info", LAUNCHER, events):
        1 / 0  # noqa: B018


def append_many(path: Path, name: int) -> None:
    events = EventLog(path, name=name)
    for number in range(200):
        events.append("step", number=number, filling="x" * 300)


def test_lines_of_several_processes_never_mix(events: EventLog) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=append_many, args=(events.path, name)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [json.loads(line) for line in events.path.read_text().splitlines() if line]
    assert lines == read_events(events.path)
    for name in range(3):
        assert [line["number"] for line in lines if line["name"] == name] == list(range(200))


def test_only_a_partial_last_line_is_lost(events: EventLog) -> None:
    events.append("began", step=1)
    size = events.path.stat().st_size
    events.append("partial")
    os.truncate(events.path, size + 9)
    events.append("resumed", step=2)
    assert [event["kind"] for event in read_events(events.path)] == ["began", "resumed"]


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "missing.jsonl") == []


def test_an_event_that_cannot_be_written_causes_only_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = EventLog(tmp_path / "missing" / "events.jsonl")
    with open_log("info", LAUNCHER, events) as log:
        events.append("saved", path=tmp_path)
        log.info("continuing")
    shown = capsys.readouterr().err
    assert shown.count("event not recorded") == 2
    assert "continuing" in shown


def test_a_follower_returns_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = Follower(path)
    assert follower.new() == []
    path.write_text('{"kind": "a"}\n{"kind": ')
    assert [event["kind"] for event in follower.new()] == ["a"]
    with path.open("a") as file:
        file.write('"b"}\nnot an event\n')
    assert [event["kind"] for event in follower.new()] == ["b"]
    assert follower.new() == []
    assert Follower(path, last_bytes=0).new() == []
    assert [event["kind"] for event in Follower(path, last_bytes=len(path.read_bytes()) - 3).new()] == ["b"]
    path.write_text('{"kind": "c"}\n')  # another file with its name
    assert [event["kind"] for event in follower.new()] == ["c"]


def test_a_large_file_is_shortened_and_a_follower_reads_each_event_once(
    events: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow_lib.store.events.LARGE_BYTES", 20_000)
    monkeypatch.setattr("workflow_lib.store.events.NEWEST_BYTES", 5_000)
    follower, followed, largest = Follower(events.path), [], 0
    for step in range(500):
        events.append("epoch" if step % 50 == 0 else "progress", time=f"2026-01-01T00:00:00.{step:03}Z", step=step)
        events.shorten()
        largest = max(largest, events.path.stat().st_size)
        followed += follower.new() if step % 7 == 0 else []
    followed += follower.new()
    assert largest < 20_200
    assert [event["step"] for event in followed] == [*range(500)]
    kept = [event["step"] for event in read_events(events.path)]
    assert {*range(0, 500, 50)} <= {*kept}
    newest = [step for step in kept if step % 50]
    assert newest == [step for step in range(newest[0], 500) if step % 50]


def append_all(path: Path, name: int) -> None:
    events = EventLog(path, name=name)
    for number in range(1500):
        events.append("epoch", number=number, filling="x" * 100)


def test_no_line_is_lost_while_another_process_shortens_the_file(
    events: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow_lib.store.events.LARGE_BYTES", -1)
    monkeypatch.setattr("workflow_lib.store.events.NEWEST_BYTES", 1_000)
    events.append("epoch", name=-1)
    writers = [multiprocessing.get_context("fork").Process(target=append_all, args=(events.path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    shortened = 0
    while any(writer.is_alive() for writer in writers):
        EventLog(events.path).shorten()
        shortened += 1
    for writer in writers:
        writer.join()
    assert shortened
    found = read_events(events.path)
    for name in range(3):
        assert {event["number"] for event in found if event["name"] == name} == {*range(1500)}


def test_a_line_for_a_file_that_is_just_replaced_is_in_the_new_one(
    events: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.write

    def replace_and_write(descriptor: int, line: bytes) -> int:
        monkeypatch.setattr(os, "write", written)
        other = events.path.with_name("other")
        other.write_bytes(b"")
        other.replace(events.path)
        return written(descriptor, line)

    events.append("before")
    monkeypatch.setattr(os, "write", replace_and_write)
    events.append("late")
    assert [event["kind"] for event in read_events(events.path)] == ["late"]


def test_old_times_of_steps_are_kept_once_a_minute_and_a_file_is_not_rewritten_for_little(
    events: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow_lib.store.events.LARGE_BYTES", 20_000)
    monkeypatch.setattr("workflow_lib.store.events.NEWEST_BYTES", 5_000)
    rewritten, known = 0, 0
    for step in range(3600):
        events.append("logged", time=f"2026-01-01T00:{step // 60:02}:{step % 60:02}.000Z", step=step)
        events.shorten()
        rewritten += known not in (0, known := events.path.stat().st_ino)
    steps = [event["step"] for event in read_events(events.path)]
    assert steps[:10] == [*range(0, 600, 60)]
    assert steps[-30:] == [*range(3570, 3600)]
    assert 0 < rewritten < 40
