"""The status of real trainings that are started, stopped and killed by signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.plugins.paced import FAIL
from tests.support.project import KILLED, STOPPED, Project, copy
from tests.support.stored import kill_after, row, rows, start
from tests.support.warm import until
from workflow_lib import cli
from workflow_lib.errors import ConfigError
from workflow_lib.housekeeping import failed_jobs, status, status_table
from workflow_lib.store.lease import last_seen


def test_the_status_follows_the_states_of_a_training(prepared: Project, tmp_path: Path) -> None:
    """New, running, stopped, killed, finished."""
    project = copy(prepared, tmp_path / "states")
    new = row(project)
    assert (new["state"], new["step"], new["attempts"], new["owner"]) == ("new", 0, [], None)
    assert new["run"] == project.run

    pid = start(project)
    running = until(lambda: (seen := row(project))["step"] >= 3 and seen, "three steps")
    assert running["state"] == "running"
    assert (running["owner"]["pid"], running["owner"]["host"]) == (pid, socket.gethostname())
    assert running["owner"]["is_running_here"]
    assert running["owner"]["job"] is None
    assert [attempt["ended"] for attempt in running["attempts"]] == ["running"]
    until(lambda: row(project)["step"] > running["step"], "another step")
    os.kill(pid, signal.SIGTERM)
    assert project.warm.wait(pid) == STOPPED
    stopped = row(project)
    assert (stopped["state"], stopped["owner"]) == ("stopped", None)
    assert stopped["attempts"][0]["ended"] == "stopped by SIGTERM"
    assert stopped["step"] == project.newest_step() == stopped["attempts"][0]["reached"]

    assert kill_after(project, stopped["step"] + 7) == KILLED
    dead = row(project)
    assert (dead["state"], dead["owner"]) == ("killed", None)
    assert dead["step"] == project.newest_step() <= dead["attempts"][1]["reached"]

    project.finish()
    done = row(project)
    assert (done["state"], done["owner"], done["epoch"], done["epochs"]) == ("trained", None, 3, 3)
    assert done["step"] == done["steps"] == project.sealed().step
    assert [attempt["ended"] for attempt in done["attempts"]] == ["stopped by SIGTERM", "killed", "finished"]


def test_the_best_run_of_a_study_has_its_name(finished: Project) -> None:
    """Neither the plan nor a suggestion contains it."""
    results = finished.folder / "results"
    plan = next(results.glob("*/plan.json"))
    best = plan.parent / "tune" / "study-1" / "best.json"
    best.parent.mkdir(parents=True)
    best.write_text(json.dumps({"run": json.loads(plan.read_text())["runs"][0]}))
    plan.unlink()
    assert row(finished)["run"] == finished.run


def test_a_run_that_is_no_longer_planned_has_the_name_of_its_results(finished: Project) -> None:
    """A result without a workspace has no row: only planned runs can be new."""
    plan = next((finished.folder / "results").glob("*/plan.json"))
    (run,) = json.loads(plan.read_text())["runs"]
    plan.unlink()
    for name, digest in ((run["id"], run["digest"]), ("gone", "0" * 32)):
        made = plan.parent / "runs" / name / "train.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps({"digest": digest}))
    assert row(finished)["run"] == finished.run


def test_a_training_that_raised_has_failed_with_the_reason(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "failing")
    (project.folder / FAIL).touch()
    assert project.attempt() == 1
    failed = row(project)
    assert failed["state"] == "failed"
    assert "told to fail" in failed["why"]
    assert "told to fail" in status_table.table([failed])


REASON = "everstep evaluate: the metric cannot be computed:\nno sample has this class\n"


@pytest.mark.parametrize(
    ("rule", "log", "why"),
    [
        ("evaluate", f"2026-01-01T00:00:00 info  started\n{REASON}", "evaluate failed: the metric cannot be computed:"),
        (
            "export",
            "Traceback (most recent call last):\n  File\nRuntimeError: bad\n",
            "export failed: RuntimeError: bad",
        ),
        ("evaluate", f"{REASON}2026-01-01T00:00:00 info  started again\n", None),
        ("evaluate", "everstep evaluate: stopped by SIGTERM\n", None),
        ("evaluate", "Traceback (most recent call last):\nKeyboardInterrupt\n", None),
        ("evaluate", "", None),
    ],
)
def test_a_failed_evaluation_or_export_is_a_failure(finished: Project, rule: str, log: str, why: str | None) -> None:
    folder = finished.folder / "results" / "t" / "runs" / finished.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps({"digest": row(finished)["digest"]}))
    path = finished.folder / "logs" / rule / "t" / f"{finished.run}.log"
    path.parent.mkdir(parents=True)
    path.write_text(log)
    seen = row(finished)
    assert (seen["state"], seen["why"]) == (("failed", f"{why} ({path})") if why else ("trained", None))
    (folder / {"evaluate": "evaluation.json", "export": "export.json"}[rule]).touch()
    assert row(finished)["state"] == "trained"


def test_a_planned_run_is_finished_with_its_evaluation_and_export(finished: Project) -> None:
    experiment = finished.folder / "results" / "planned"
    folder = experiment / "runs" / finished.run
    folder.mkdir(parents=True)
    known = {"id": finished.run, "digest": row(finished)["digest"]}
    (experiment / "plan.json").write_text(json.dumps({"runs": [known], "study": None}))
    assert row(finished)["state"] == "trained"
    (folder / "evaluation.json").touch()
    assert row(finished)["state"] == "trained"
    (folder / "export.json").touch()
    assert row(finished)["state"] == "finished"


def test_the_attempts_of_a_run_take_no_line_once_it_is_trained(finished: Project) -> None:
    seen = row(finished)
    seen |= {"attempts": seen["attempts"] * 3}
    heading, *shown = status_table.table([seen]).splitlines()
    assert heading.endswith("attempts")
    assert shown[0].endswith(f" {len(seen['attempts'])}")
    assert shown[1] == ""


BEGIN = """
import sys
from workflow_lib.cli.entry import _log_to_stderr
from workflow_lib.store import job_process
_log_to_stderr()
job_process.log_begin()
sys.stdin.read()
"""


def test_a_killed_evaluation_is_told_from_one_that_runs(finished: Project) -> None:
    folder = finished.folder / "results" / "t" / "runs" / finished.run
    written = finished.folder / "logs" / "evaluate" / "t" / f"{finished.run}.log"
    folder.mkdir(parents=True, exist_ok=True)
    written.parent.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").touch()
    with (
        written.open("wb") as log,
        subprocess.Popen([sys.executable, "-c", BEGIN], stdin=subprocess.PIPE, stderr=log) as process,
    ):
        until(lambda: written.read_text().endswith("\n"), "the first line of the log")
        assert (row(finished)["state"], row(finished)["why"]) == ("evaluating", None)
        process.kill()
        process.wait()
    seen = row(finished)
    assert seen["state"] == "killed"
    assert seen["why"].startswith("evaluate was killed; the pipeline repeats it (")
    with written.open("a") as log:
        log.write("everstep evaluate: stopped by SIGINT. Run the same command again\n")
    assert row(finished)["state"] == "trained"


def test_a_failure_of_the_whole_experiment_is_found_by_its_log(tmp_path: Path) -> None:
    for path, text in {
        "preprocess/t/digits-1.log": "everstep preprocess: no such file",
        "preprocess/t/digits-2.log": "everstep preprocess: no such file",
        "plan/t.log": "everstep freeze: two runs are equal",
        "report/t.log": "2026-01-01T00:00:00 info  written",
    }.items():
        (tmp_path / "logs" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / path).write_text(text)
    prepared = tmp_path / "results" / "t" / "data" / "digits-2.json"
    prepared.parent.mkdir(parents=True)
    prepared.touch()
    found = failed_jobs.of_experiment(tmp_path / "results" / "t")
    assert [(job.rule, job.subject, job.reason) for job in found] == [
        ("preprocess", "digits-1", "no such file"),
        ("plan", "", "two runs are equal"),
    ]


@pytest.mark.parametrize(("width", "lacks"), [(80, {"saved", "samples/s"}), (60, {"saved", "epoch"}), (200, set())])
def test_on_a_terminal_lines_are_as_wide_as_it(killed: Project, width: int, lacks: set[str]) -> None:
    seen = row(killed) | {"run": "name-" * 12, "state": "running", "samples_per_s": 1e4, "left_s": 90.0}
    seen["metrics"] = {"val_loss": 1.0, "val_accuracy": 0.5}
    lines = status_table.table([seen, seen], width=width, is_terminal=True).splitlines()
    assert max(map(len, lines)) <= width
    assert {name for name in status_table.HEADINGS if name not in lines[0]} >= lacks
    assert (width > 100) == ("saved" in lines[0])
    assert " 90 s " in lines[1] or "ETA" not in lines[0]


def test_a_run_that_makes_no_progress_has_stalled(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "stalling")
    path = project.folder / "experiment.yaml"
    path.write_text(path.read_text().replace("max_stalled_attempts: 100", "max_stalled_attempts: 1"))
    assert project.attempt({"point": "entered", "target": "launcher"}) == KILLED
    assert project.attempt() == 1
    assert row(project)["state"] == "stalled"


def test_a_suspended_process_is_still_the_owner(prepared: Project, tmp_path: Path) -> None:
    project = copy(prepared, tmp_path / "asleep")
    pid = start(project)
    until(lambda: row(project)["step"] >= 1, "a step")
    os.killpg(pid, signal.SIGSTOP)
    until(lambda: threads(pid) == {"T"}, "every thread to stop")  # the heartbeat thread may be the last to stop
    os.utime(beat(project), (time.time() - 1000,) * 2)
    seen = row(project)
    os.killpg(pid, signal.SIGKILL)
    project.warm.wait(pid)
    assert seen["state"] == "running"
    assert seen["owner"]["pid"] == pid
    assert not seen["owner"]["is_running_here"]
    assert seen["owner"]["silent_s"] > 900


def threads(pid: int) -> set[str]:
    """Return the states of the threads of a process, as in proc(5)."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found.add(path.read_text().rpartition(")")[2].split()[0])
    return found


def beat(project: Project) -> Path:
    return project.workspace / "leases" / "000001.beat"


def move_to_another_host(project: Project) -> None:
    """Change the lease as if the attempt had run on another host."""
    path = project.workspace / "leases" / "000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "n7", "job": "4242"}))


def test_an_owner_on_another_host_counts_as_alive_while_its_heartbeat_is_recent(killed: Project) -> None:
    move_to_another_host(killed)
    os.utime(beat(killed))
    seen = row(killed)
    assert (seen["state"], seen["attempts"][0]["ended"]) == ("running", "running")
    assert (seen["owner"]["host"], seen["owner"]["job"]) == ("n7", "4242")
    text = " ".join(status_table.table([seen]).split())
    assert "on n7, job 4242, last heartbeat" in text

    os.utime(beat(killed), (time.time() - 3 * 3600,) * 2)
    seen = row(killed)
    assert (seen["state"], seen["attempts"][0]["ended"], seen["owner"]["is_alive"]) == ("killed", "killed", False)
    assert "last owner: pid" in status_table.table([seen])
    assert "3.0 h ago" in " ".join(status_table.table([seen]).split())


def test_reading_the_status_changes_no_file(killed: Project) -> None:
    def everything() -> dict[str, tuple[float, bytes]]:
        paths = [path for path in killed.folder.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime, path.read_bytes()) for path in paths}

    before = everything()
    status_table.table(rows(killed))
    assert everything() == before


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "not text": lambda path: path.write_bytes(b"\x00\xff\xfe\n" * 9),
    "a list": lambda path: path.write_text("[1]"),
    "another object": lambda path: path.write_text('{"steps": {}, "kind": "epoch", "seconds": "x", "runs": 3}'),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_with_a_damaged_file_is_still_listed(killed: Project, finished: Project, damage: str) -> None:
    for project in (killed, finished):
        paths = [p for p in project.workspace.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
        paths += [project.workspace.parent / "config.json", *project.folder.glob("results/*/plan.json")]
        assert len(paths) > 6
        for path in paths:
            content = path.read_bytes()
            DAMAGES[damage](path)
            (seen,) = rows(project)
            assert seen["digest"] == project.workspace.parent.name, path
            assert seen["state"] in ("killed", "trained", "finished", "damaged", "new", "running"), path
            assert status_table.table([seen])
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(content)


def test_a_finished_run_without_its_final_checkpoint_is_damaged(finished: Project) -> None:
    shutil.rmtree(finished.checkpoints / finished.sealed().path.name)
    assert row(finished)["state"] == "damaged"


def test_lines_have_at_most_100_columns_and_contain_the_digest(killed: Project, finished: Project) -> None:
    long = [seen | {"run": f"{'a-long-name-' * 6}{seen['digest'][:12]}"} for seen in rows(killed) + rows(finished)]
    lines = status_table.table(long).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(seen["digest"][:12] in line for line in lines) for seen in long)
    assert "attempts: killed" in " ".join(status_table.table(long).split())


def test_runs_of_another_user_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "work/runs").mkdir(parents=True)
    (tmp_path / "work").chmod(0)
    tmp_path.chmod(0o755)
    code = """
import os
from pathlib import Path
from workflow_lib.errors import with_advice
from workflow_lib.housekeeping import status
if os.getuid() == 0:  # may read everything
    os.setuid(54321)
try:
    print(status.runs(Path("work"), Path("results")))
except PermissionError as error:
    print(with_advice(error))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    (tmp_path / "work").chmod(0o755)
    assert "Permission denied: 'work'. Ask the owner for access" in done.stdout, done.stderr


def test_the_verb_prints_the_table_or_json(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.folder)
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "trained"
    assert cli.main(["status"]) == 0
    assert finished.run in capsys.readouterr().out
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == f"no run has been started in {empty}\n"
    (finished.folder / "Snakefile").touch()
    (finished.folder / "inner").mkdir()
    monkeypatch.chdir(finished.folder / "inner")
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr()
    assert finished.run in shown.out
    assert f"the project is {finished.folder}\n" in shown.err
    monkeypatch.chdir(finished.folder / "inner")
    Path("e.yaml").write_text("name: other\n")
    assert cli.main(["status", "e.yaml"]) == 2
    assert "e.yaml: no planned experiment" in capsys.readouterr().err


def test_a_released_lease_has_no_owner(finished: Project) -> None:
    assert last_seen(finished.workspace) is None


def test_the_table_has_metrics_and_counts_failures_first(finished: Project) -> None:
    seen = row(finished)
    last = json.loads(Path(finished.workspace / "metrics.jsonl").read_text().splitlines()[-1])
    assert seen["metrics"] == {name: last[name] for name in ("val_loss", "val_accuracy")}
    failed = seen | {"state": "failed"}
    text = status_table.table([seen, failed, seen | {"state": "new"}])
    assert f"{last['val_loss']:.4g}  accuracy {last['val_accuracy']:.3g}" in text
    assert "3 runs: 1 failed, 1 new, 1 trained" in text
    assert "\x1b" not in text
    assert "\x1b[31mfailed\x1b[0m" in status_table.table([failed], is_coloured=True)


@pytest.mark.parametrize(
    ("environment", "is_terminal", "expected"),
    [({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False)],
)
def test_colours_need_a_terminal_and_no_objection(
    environment: dict[str, str], is_terminal: bool, expected: bool
) -> None:
    assert status_table.may_colour(environment, is_terminal=is_terminal) is expected


def test_runs_are_chosen_by_experiment_and_state(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    found, results = rows(finished), Path("results")
    other = status._blank("0" * 32, {})
    assert status.chosen([*found, other], results, "t", []) == found
    assert status.chosen([*found, other], results, "experiment.yaml", ["new"]) == []
    assert status.chosen([*found, other], results, None, ["new", "failed"]) == [other]
    with pytest.raises(ConfigError, match=r"nope: no planned experiment; there are: t"):
        status.chosen(found, results, "nope", [])
    with pytest.raises(ConfigError, match="--state lost: allowed: new, running"):
        status.chosen(found, results, None, ["lost"])
    assert cli.main(["status", "--watch"]) == 2  # not a terminal
