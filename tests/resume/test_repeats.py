"""A training that is certain to fail again fails at once, with the same message; others are tried again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import with_ranks
from tests.support.project import FAILED, FINISHED, STOPPED, Project, merged
from tests.support.warm import until
from workflow_lib.files import write_signed
from workflow_lib.housekeeping import status, status_table
from workflow_lib.store import accounting, layout
from workflow_lib.store.attempts import list_attempts

USER_ERROR = 2
DIVERGES = "tests.plugins.plants:a_loss_is_infinite"
RAISES = "tests.plugins.plants:the_model_raises"
UNFIT = {"model": {"name": "tests.plugins.unfit", "params": {"kind": "frozen"}}}
NOT_AGAIN = "is not retried: it would fail in the same way"


def ends(run: Project) -> list[str]:
    """Return one word for the end of each attempt."""
    return [str(attempt.reason).partition(":")[0] for attempt in list_attempts(run.workspace)]


def last_line(run: Project) -> str:
    return run.log.splitlines()[-1]


def row(run: Project) -> dict[str, Any]:
    (only,) = status.runs(run.folder / "work", run.folder / "results")
    return only


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_divergence_is_reported_again_at_once_until_its_record_is_deleted(fresh: Fresh, ranks: int) -> None:
    """The later attempts have no fault: if one was started, it would finish."""
    run = fresh(merged(with_ranks(ranks), {"training": {"epochs": 3}}))
    assert run.attempt(plant=DIVERGES) == FAILED
    first = last_line(run)
    assert NOT_AGAIN not in first
    assert row(run)["state"] == "diverged"
    assert "a loss of step 20" in row(run)["why"]
    assert run.attempt() == FAILED
    again = last_line(run)
    assert first.partition(". The state of step")[0] in again
    assert NOT_AGAIN in again
    assert "The state of step" in again
    assert ends(run) == ["diverged"]
    record = layout.failure_file(run.workspace)
    assert f"delete {record.relative_to(run.folder)} " in again
    record.unlink()
    assert run.attempt() == FINISHED
    assert not record.exists()


def test_an_exception_raised_twice_at_a_step_is_not_tried_a_third_time(fresh: Fresh) -> None:
    run = fresh()
    assert [run.attempt(plant=RAISES) for _ in range(2)] == [FAILED, FAILED]
    assert NOT_AGAIN not in last_line(run)
    assert "ValueError: a bug in the user's model" in last_line(run)
    assert run.attempt() == FAILED
    assert "ValueError: a bug in the user's model. This failure of" in last_line(run)
    assert f"{NOT_AGAIN}, as it has 2 times at step 19" in last_line(run)
    assert ends(run) == ["raised", "raised"]
    assert row(run)["state"] == "failed"
    assert "a bug in the user's model" in row(run)["why"]
    layout.failure_file(run.workspace).unlink()
    assert run.attempt() == FINISHED
    found = accounting.account(run.workspace)
    assert (found.failed, found.lost_s, found.redone) == (2, 0.0, 0)
    assert found.failed_s > 0
    shown = status_table.spent(found)
    assert "2 attempts failed without an interruption" in shown
    assert "lost to interruptions" not in shown


def test_an_exception_of_several_ranks_is_known_by_the_step_of_the_rank_that_raised_it(fresh: Fresh) -> None:
    run = fresh(with_ranks(2))
    for _ in range(3):
        assert run.attempt(plant="tests.plugins.plants:rank_one_raises") == FAILED
    assert ends(run) == ["raised", "raised"]
    assert "2 times at step 3," in last_line(run)


def test_an_exception_at_another_step_is_tried_again(fresh: Fresh) -> None:
    run = fresh()
    for plant in (RAISES, f"{RAISES}_later"):
        assert run.attempt(plant=plant) == FAILED
    assert run.attempt() == FINISHED
    assert ends(run) == ["raised", "raised", "finished"]


def test_settings_that_the_training_rejects_are_reported_again_at_once(fresh: Fresh) -> None:
    run = fresh(UNFIT)
    assert [run.attempt() for _ in range(3)] == [USER_ERROR] * 3
    assert ends(run) == ["rejected"]
    assert "has no weights to train. This failure of" in last_line(run)
    assert NOT_AGAIN in last_line(run)
    assert row(run)["state"] == "failed"
    assert "has no weights to train" in row(run)["why"]


@pytest.mark.parametrize("interruption", ["SIGKILL", "SIGTERM", "memory"])
def test_an_interrupted_training_is_tried_again_any_number_of_times(fresh: Fresh, interruption: str) -> None:
    run = fresh()
    for _ in range(3):
        if interruption == "memory":
            assert run.attempt(plant="tests.plugins.plants:memory_is_short") == FAILED
        else:
            fault = {"point": "commit", "count": 1, "signal": interruption}
            assert run.attempt(fault) == (STOPPED if interruption == "SIGTERM" else FAILED)
    assert run.attempt() == FINISHED
    found = accounting.account(run.workspace)
    assert (found.attempts, found.failed) == (4, 0)
    assert found.lost_s > 0


def test_a_failure_is_tried_again_after_a_change_of_a_setting_that_it_may_depend_on(fresh: Fresh) -> None:
    run = fresh()
    assert run.attempt(plant=DIVERGES) == FAILED
    experiment = run.folder / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("interval_steps: 4", "interval_steps: 5"))
    assert run.attempt() == FINISHED
    assert "is retried, since these have changed: the settings" in run.log


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "edited": lambda path: path.write_text(path.read_text().replace('"diverged"', '"raised"')),
    "a list": lambda path: path.write_text("[1]"),
    "other values": lambda path: write_signed(path, {**json.loads(path.read_text()), "times": "many"}),
    "another error": lambda path: write_signed(path, {**json.loads(path.read_text()), "error": "annotations"}),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_stops_no_training(fresh: Fresh, damage: str) -> None:
    run = fresh()
    assert run.attempt(plant=DIVERGES) == FAILED
    DAMAGES[damage](layout.failure_file(run.workspace))
    assert run.attempt() == FINISHED
    assert "the record of an earlier failure cannot be read and is ignored" in run.log


def test_an_attempt_that_waited_for_an_owner_that_failed_gets_its_error(fresh: Fresh) -> None:
    """It checks for a failure record before the owner writes one."""
    run = fresh({"runtime": {"lease_wait_s": 600}})
    owner = run.start(plant="tests.plugins.plants:the_loss_is_infinite_once_somebody_waits")
    until(lambda: "starts at step" in run.log, "the owner to begin")
    other = run.start()
    until(lambda: "; waiting" in run.log, "the other one to wait")
    (run.folder / "go").touch()
    assert (run.warm.wait(owner), run.warm.wait(other)) == (FAILED, FAILED)
    assert ends(run) == ["diverged"]
    assert NOT_AGAIN in last_line(run)


def test_a_run_rejected_before_its_first_attempt_is_shown_as_failed(fresh: Fresh) -> None:
    """Every attempt repeats this check, since it is cheap."""
    run = fresh({"runtime": {"device": "cuda:7"}})
    assert run.attempt() == USER_ERROR
    shown = row(run)
    assert shown["state"] == "failed"
    assert shown["attempts"] == []
    assert "cuda:7" in shown["why"]
    experiment = run.folder / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("cuda:7", "cpu"))
    assert run.attempt() == FINISHED
    assert row(run)["state"] == "trained"
    assert not layout.failure_file(run.workspace).exists()
