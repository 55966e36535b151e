"""A message is told once on each channel, whatever is killed, and no failure of a channel reaches the pipeline."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash import operations, run_forked
from tests.support.faults import FileFault
from tests.support.receivers import web_server
from workflow_lib.config.notify import Notify
from workflow_lib.distributed.shared_state import StepRange
from workflow_lib.errors import UserError
from workflow_lib.notify import Failure, Notifier, check_environment
from workflow_lib.notify.channels import Channel, NotSent
from workflow_lib.notify.message import Message, failed
from workflow_lib.notify.outbox import Outbox
from workflow_lib.notify.stalls import Stalls
from workflow_lib.results import layout
from workflow_lib.runtime.clock import now_s
from workflow_lib.store import attempts
from workflow_lib.store import layout as store_layout

LONG_S = 600.0
MESSAGE = Message("k" * 32, "failure", "tiny", "title", "text", "2026", "host", "/folder")
FAILED = [Failure("train a", "everstep train: step 17 of attempt 0123456789abcdef: loss is nan", "c0de")]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "results" / "tiny"


def to_file(path: Path) -> Channel:
    """Return a channel that appends the key to a file, in one operation."""

    def send(message: Message, seconds: float) -> None:
        with path.open("a") as file:
            file.write(message.key + "\n")

    return send


def failing(message: Message, seconds: float) -> None:
    raise NotSent("it is broken")


def told(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def outbox(results: Path, channels: Mapping[str, Channel], tries: int = 3) -> Outbox:
    return Outbox(results, channels, tries, LONG_S, pause=lambda seconds: None)


def state(results: Path, channel: str = "a") -> dict[str, Any]:
    (path,) = layout.notification_files(results)
    found: dict[str, Any] = json.loads(path.read_text())["channels"][channel]
    return found


def test_a_message_is_sent_once_and_a_failing_channel_is_given_up(results: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    pauses: list[float] = []
    box = Outbox(results, {"a": to_file(sent), "b": failing}, 3, LONG_S, pauses.append)
    assert box.tell(MESSAGE) == [
        "b: the message about failure was not sent: it is broken. It is given up after 3 tries"
    ]
    assert pauses == [2.0, 6.0]
    for again in (box.tell(MESSAGE), box.resume(), outbox(results, {"a": to_file(sent)}).tell(MESSAGE)):
        assert again == []
    assert told(sent) == [MESSAGE.key]
    assert (state(results), state(results, "b")) == (
        {"state": "sent", "tries": 1},
        {"state": "given up", "tries": 3},
    )


def test_a_slow_channel_delays_no_other(results: Path, tmp_path: Path) -> None:
    sent, is_fast_sent = tmp_path / "sent", threading.Event()

    def fast(message: Message, seconds: float) -> None:
        to_file(sent)(message, seconds)
        is_fast_sent.set()

    def slow(message: Message, seconds: float) -> None:
        if not is_fast_sent.wait(60):
            raise NotSent("the other one was not sent before")

    assert outbox(results, {"a": slow, "b": fast}, tries=1).tell(MESSAGE) == []
    assert told(sent) == [MESSAGE.key]


def test_all_tries_share_the_time_and_the_next_process_makes_those_that_are_left(results: Path) -> None:
    clock, given = [0.0], []

    def dead(message: Message, seconds: float) -> None:
        given.append(round(seconds))
        raise NotSent("it is dead")

    def pause(seconds: float) -> None:
        clock[0] += seconds

    box = Outbox(results, {"a": dead}, 4, 10.0, pause, lambda: clock[0])
    again = "a: the message about failure was not sent: it is dead. The next start of the pipeline tries it again"
    assert box.tell(MESSAGE) == [again]
    assert (given, clock) == ([10, 8, 2], [8.0])
    assert box.resume() == ["a: the message about failure was not sent: it is dead. It is given up after 4 tries"]
    assert (given[3:], clock, box.resume()) == ([10], [8.0], [])


def test_kills_repeat_a_message_only_between_delivery_and_record(results: Path, tmp_path: Path) -> None:
    """A process dies at each operation on the record; the next one completes the message."""
    sent = tmp_path / "sent"
    box = outbox(results, {"a": to_file(sent)})
    done = operations(lambda: box.tell(MESSAGE), str(tmp_path / "results"))
    folder = layout.notifications_dir(results)
    repeated = []
    for count in range(1, len(done) + 1):
        for path in (*folder.glob("*-*.json"), sent):
            path.unlink(missing_ok=True)
        fault = FileFault(path=f"{tmp_path / 'results'}*", count=count, rank=-1, mode="before")
        code = run_forked(partial(box.tell, MESSAGE), [fault])
        assert code in (0, -signal.SIGKILL)  # 0: the folder exists, so its operations are missing
        was_sent = len(told(sent))
        assert box.tell(MESSAGE) == []
        assert box.resume() == []
        assert told(sent) in ([MESSAGE.key], [MESSAGE.key] * 2)
        if len(told(sent)) == 2:
            repeated.append(count)
        assert was_sent <= 1
    assert repeated, "a kill after the delivery is a part of the test"
    assert repeated == list(range(repeated[0], repeated[-1] + 1))


def test_tries_are_counted_over_kills(results: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent"

    def dies(message: Message, seconds: float) -> None:
        to_file(sent)(message, seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    box = outbox(results, {"a": dies}, tries=2)
    for _ in range(2):
        assert run_forked(partial(box.tell, MESSAGE)) == -signal.SIGKILL
    assert outbox(results, {"a": to_file(sent)}, tries=2).resume() == [
        "a: the message about failure was not sent: its last try was interrupted. It is given up after 2 tries"
    ]
    assert len(told(sent)) == 2


def test_equal_failures_have_one_key(results: Path) -> None:
    one_more = [*FAILED, Failure("train b", "x", "")]
    again = [Failure("train a", "everstep train: step 18 of attempt fedcba9876543210: loss is nan", "c0de")]
    key = failed(results, FAILED, "settings", "everstep run").key
    assert key == failed(results, again, "settings", "everstep run").key
    changed = [Failure("train a", FAILED[0].reason, "new code")]
    others = [(one_more, "settings"), (changed, "settings"), (FAILED, "other settings")]
    assert len({key, *(failed(results, each, settings, "").key for each, settings in others)}) == 4


def notifier(results: Path, url: str, said: list[str], **settings: Any) -> Notifier:
    return Notifier(
        Notify(webhook_env="HOOK", **{"timeout_s": LONG_S, **settings}),
        results,
        results.parents[1] / "work",
        environment={"HOOK": url},
        say=said.append,
        pause=lambda seconds: None,
    )


def test_a_failure_is_told_once_over_restarts_and_an_end_that_was_not_told_later(results: Path) -> None:
    said: list[str] = []
    with web_server(503) as web:
        first = notifier(results, web.url, said, events=["end", "failure"])
        first.begin(list)
        first.fail([], "s", "everstep run")  # stopped by the user
        first.fail(FAILED, "s", "everstep run")
        assert len(web.bodies) == 2  # 503, then accepted
        again = notifier(results, web.url, said, events=["end", "failure"])
        again.begin(list)
        again.fail(FAILED, "s", "everstep run")
        assert len(web.bodies) == 2
        again.begin(list)  # and is killed after its last job
        last = notifier(results, web.url, said, events=["end", "failure"])
        last.resume(lambda: None)
        assert len(web.bodies) == 2
        last.resume(lambda: ["a"])
        assert len(web.bodies) == 3
        last.resume(lambda: ["a"])
        last.end(["a"])
    assert said == []
    assert [json.loads(body)["event"] for body in web.bodies] == ["failure", "failure", "end"]
    assert "train a: everstep train: step 17" in json.loads(web.bodies[0])["text"]


def test_no_trouble_of_a_channel_or_of_the_disk_reaches_the_pipeline(results: Path) -> None:
    said: list[str] = []
    with web_server() as web:
        url = web.url
    broken = notifier(results, url, said)
    broken.fail(FAILED, "s", "everstep run")
    assert said == [
        "notify: webhook: the message about failure was not sent: Connection refused. It is given up after 3 tries"
    ]
    layout.notifications_dir(results).rename(results / "moved")
    layout.notifications_dir(results).write_text("a file")
    broken.end(["a"])
    assert said[1].startswith("notify: no message was sent: ")
    assert said[1].endswith("No training is affected")
    with pytest.raises(UserError, match=r"HOOK \(notify\.webhook_env\)"):
        check_environment(Notify(webhook_env="HOOK"), {"HOOK": ""})


def test_a_training_stalls_if_its_live_process_makes_no_step(tmp_path: Path) -> None:
    run = "a" * 32
    workspace = store_layout.workspace_path(tmp_path, run, "d" * 12, "c" * 12)
    attempts.create(workspace)
    name = attempts.new_attempt()
    attempts.begin(workspace, name)
    heartbeat = attempts.Heartbeat(workspace, name)
    stalls = Stalls(60.0, tmp_path)

    def at(time_s: float, step: int | None, *, alive: bool = True) -> list[str]:
        if alive:
            heartbeat.write(None if step is None else StepRange(0, step, now_s()))
            time.sleep(0.002)  # the heartbeat is in milliseconds
        return [str(each) for each in stalls.find([run], time_s)]

    assert at(0, None) == []
    assert at(59, None) == []
    assert at(61, 5) == []
    assert at(120, 5) == []
    (found,) = at(121, 5)
    assert found.startswith(f"run {run[:12]}: no new step for ")
    assert "at step 5 (host " in found
    assert at(500, 5) == []  # once for each attempt
    killed = Stalls(60.0, tmp_path)  # another pipeline, which never sees this process alive
    assert killed.find([run], 0.0) == killed.find([run], 1000.0) == []
    heartbeat.close()
    attempts.end(workspace, name, "finished")
    assert at(5000, 5, alive=False) == []


def test_a_stall_is_told_by_the_pipeline_while_it_runs(results: Path) -> None:
    work, run = results.parents[1] / "work", "a" * 32
    workspace = store_layout.workspace_path(work, run, "d" * 12, "c" * 12)
    attempts.create(workspace)
    store_layout.run_config(work, run).write_text("{}")
    name = attempts.new_attempt()
    attempts.begin(workspace, name)
    heartbeat = attempts.Heartbeat(workspace, name)
    said: list[str] = []
    with web_server() as web:
        watching = notifier(results, web.url, said, stall_minutes=0.005)
        watching.begin(lambda: [run, "not-frozen-yet-0123456789ab"])
        deadline = time.monotonic() + 120
        while not web.bodies:
            heartbeat.write(StepRange(0, 3, now_s()))
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        watching.fail([], "s", "")
        for thread in threading.enumerate():
            if thread.name == "stalls":
                thread.join()
    heartbeat.close()
    assert [json.loads(body)["event"] for body in web.bodies] == ["stall"]
    assert said == []
