"""One attempt at a time owns a run; a former owner that wakes changes nothing, and others learn who holds it."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.resume.conftest import Fresh
from tests.support.project import FINISHED, PASS, STOPPED, Project, differences
from tests.support.warm import members, states, until
from workflow_lib.store.lease import Holder

QUICK = {"runtime": {"lease_timeout_s": 1.0}}
LONG = {"training": {"epochs": 4000}, "checkpoint": {"interval_steps": 50}}


def contents(run: Project) -> dict[str, bytes]:
    """Return all files of the run that depend on the training."""
    kept = [run.workspace / "metrics.jsonl", *run.checkpoints.rglob("*"), *run.output.parent.iterdir()]
    return {str(path): path.read_bytes() for path in kept if path.is_file()}


def test_a_second_launcher_is_rejected_and_names_the_first(fresh: Fresh) -> None:
    run = fresh(LONG)
    first = run.start()
    until(run.newest_step, "a checkpoint")
    assert run.warm.wait(run.start()) == STOPPED
    assert re.search(rf"everstep train: .* is being trained by attempt \w{{8}} \(host .*pid {first}\)", run.log)
    saved = run.newest_step()
    until(lambda: run.newest_step() > saved, "the first attempt to continue")
    os.kill(first, signal.SIGTERM)
    assert run.warm.wait(first) == STOPPED


def test_a_launcher_that_waits_for_the_owner_stops_at_once_when_asked(fresh: Fresh) -> None:
    run = fresh({**LONG, "runtime": {"lease_wait_s": 600.0}})
    first = run.start()
    until(run.newest_step, "a checkpoint")
    second = run.start()
    until(lambda: "held by attempt" in run.log, "the second to wait")
    os.kill(second, signal.SIGTERM)
    assert run.warm.wait(second) == STOPPED
    assert "everstep train: asked to stop while attempt" in run.log
    os.kill(first, signal.SIGTERM)
    assert run.warm.wait(first) == STOPPED


@pytest.mark.parametrize("place", ["fetch", "writing", "metrics", "final save"])
def test_an_owner_that_wakes_after_its_successor_finished_changes_nothing(
    fresh: Fresh, reference: Fresh, place: str
) -> None:
    """All its processes are stopped before its next write; a second attempt takes over and finishes the run."""
    run = fresh(QUICK)
    former = run.start({"point": place, "count": 7 if place == "fetch" else 1, "signal": "SIGSTOP", "target": "group"})
    until(lambda: all_stopped(former), "the first to be stopped")
    assert run.attempt() == FINISHED
    assert "has had no heartbeat for" in run.log
    assert differences(reference(QUICK), run) == []
    before = contents(run)
    os.killpg(former, signal.SIGCONT)
    assert run.warm.wait(former) == STOPPED
    assert "another attempt has taken over" in run.log.splitlines()[-1]
    assert contents(run) == before


def all_stopped(group: int) -> bool:
    processes = states(group)
    return len(processes) > 1 and set(processes.values()) == {"T"}


def test_the_lease_of_another_host_is_taken_over_only_after_its_heartbeat_stops(fresh: Fresh, reference: Fresh) -> None:
    run = fresh()
    assert run.attempt({"point": "fetch", "count": 7, "target": "launcher"}) < 0
    lease = sorted((run.workspace / "leases").glob("*.json"))[-1]
    holder = replace(Holder(**json.loads(lease.read_text())), host="elsewhere", pid=1)
    lease.write_text(json.dumps(asdict(holder)))
    contender = run.start()
    until(lambda: "held by attempt" in run.log, "the contender to look")
    beat_until_refused(lease.with_suffix(".beat"), run, contender)
    assert "host elsewhere" in run.log.splitlines()[-1]
    assert run.verdict(reference()) == PASS
    assert "has had no heartbeat for" in run.log


def beat_until_refused(beat: Path, run: Project, contender: int) -> None:
    """The holder's heartbeat moves until the contender has given up."""
    moment = 1e9

    def is_over() -> bool:
        nonlocal moment
        moment += 1
        os.utime(beat, (moment, moment))
        return not members(contender)

    until(is_over, "the contender to give up")
    assert run.warm.wait(contender) == STOPPED
