import logging
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workflow_lib import files, ready
from workflow_lib.errors import EverstepError
from workflow_lib.live import lines, recorder, screen
from workflow_lib.live.jobs import FAILED, FINISHED, Job, Pipeline
from workflow_lib.live.pipeline import _judge as judge
from workflow_lib.live.training import Training
from workflow_lib.live.watch import Watch
from workflow_lib.results import layout
from workflow_lib.results.read_runs import TUNED
from workflow_lib.store import attempts
from workflow_lib.store.events import EventLog, Follower, read_events

DIGESTS = [f"{number:032x}" for number in range(1, 5)]
RUNS = [f"digits-hidden64-lr0.001-dropout0.25-{digest[-12:]}" for digest in DIGESTS]
SPEED = {"samples_per_s": 640.0, "left_s": 35.0}
EPOCH = {"epoch": 3, "step": 150, "steps": 500, "train_loss": 0.5, "val_accuracy": 0.875} | SPEED


def pipeline() -> Pipeline:
    """Return a pipeline of four runs: one failed, one was finished before, one is trained, one waits."""
    made = Pipeline()
    events: list[dict[str, Any]] = [
        {"kind": "plan", "results": "results/digits", "runs": RUNS, "is_local": True, "experiment": "e.json"},
        {"kind": "jobs", "counts": {"train": 3, "evaluate": 3, "total": 6}},
        {"kind": "started", "runs": [RUNS[0], RUNS[2], RUNS[3]], "packs": {}, "prepared": "ready"},
        {"kind": "job", "id": 1, "rule": "train", "wildcards": {"run": RUNS[0]}},
        {"kind": "failed", "id": 1, "code": 1, "reason": "everstep train: a bug"},
        {"kind": "job", "id": 2, "rule": "train", "wildcards": {"run": RUNS[2]}},
    ]
    for event in events:
        made.apply(event)
    return made


@pytest.mark.parametrize(("split", "named"), [("test", "test"), ("val", "validation")])
def test_the_line_about_an_evaluation_names_its_split(tmp_path: Path, split: str, named: str) -> None:
    folder = layout.run_dir(tmp_path, RUNS[0])
    files.write_json(folder / layout.EVALUATION, {"split": split, "metrics": {"val_loss": {"value": 0.5}}})
    job = Job("evaluate", {"run": RUNS[0]}, FINISHED)
    assert lines.of_job(job, tmp_path) == f"evaluate {RUNS[0]}: {named} val_loss 0.5000"


def test_each_run_has_a_state() -> None:
    assert [pipeline().state_of(run) for run in RUNS] == ["failed", "finished", "training", "waiting"]


def test_a_failed_job_that_starts_again_is_running() -> None:
    made = pipeline()
    again = made.apply({"kind": "job", "id": 1, "rule": "train", "wildcards": {"run": RUNS[0]}})
    assert again is not None
    assert lines.of_job(again, Path("results")) == f"train {RUNS[0]} starts again"
    assert made.state_of(RUNS[0]) == "training"


@pytest.mark.parametrize(
    ("is_stopping", "code", "reason", "expected"),
    [
        (False, 2, "everstep train: model.init.from: it does not fit", " failed: model.init.from: it does not fit"),
        (False, -9, "epoch 3", " failed: epoch 3"),
        (
            False,
            75,
            "everstep train: stopped by SIGUSR1 at step 7; saved. Run it again",
            ": stopped by SIGUSR1 at step 7; saved",
        ),
        (True, -2, "its log is empty", ": stopped"),
        (True, 130, "its log is empty", ": stopped"),
        (True, 1, "KeyboardInterrupt", ": stopped"),
        (True, 1, "ValueError: a bug", " failed: ValueError: a bug"),
    ],
)
def test_an_interrupted_job_is_stopped_and_another_one_failed(
    tmp_path: Path, is_stopping: bool, code: int, reason: str, expected: str
) -> None:
    made = pipeline()
    made.is_stopping = is_stopping
    job = made.apply({"kind": "failed", "id": 2, "code": code, "reason": reason})
    assert job is not None
    assert lines.of_job(job, Path("results")) == f"train {RUNS[2]}{expected}"
    assert made.state_of(RUNS[2]) == ("failed" if "failed" in expected else "stopped")
    assert not made.is_rejected  # another job has failed by a bug
    del made.jobs[1]
    assert made.is_rejected == (code == 2)
    (log := tmp_path / "log").write_text("a job has failed")
    with pytest.raises(EverstepError, match="a job has failed") as caught:
        judge(1, Watch(Follower(log), log, made), log, was_stopped=False)
    assert caught.value.exit_code == (2 if code == 2 else 1)
    again = made.apply({"kind": "job", "id": 2, "rule": "train", "wildcards": {"run": RUNS[2]}})
    assert again is not None


def test_the_exit_code_and_the_log_of_a_failed_job_are_recorded_before_a_retry_empties_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(recorder.PATH, str(tmp_path / "events.jsonl"))
    log = tmp_path / "train.log"
    logger, handler = logging.getLogger(f"{__name__}.snakemake"), recorder.Recorder()
    logger.propagate = False
    logger.addHandler(handler)
    command = "CalledProcessError in file \"train.smk\", line 38:\nCommand 'exec python' "
    for ended in ("returned non-zero exit status 2.", "died with <Signals.SIGINT: 2>."):
        log.write_text(f"everstep train: {ended}\n")
        logger.error("RuleException:\n%s%s", command, ended, extra={"event": "error"})
        logger.error("Error in rule", extra={"event": "job_error", "jobid": 1, "log": [str(log)]})
        log.write_text("")
    logger.error("Error in rule", extra={"event": "job_error", "jobid": 2, "log": []})
    (tmp_path / "slurm.log").write_text(f"{command}returned non-zero exit status 2.\nsrun: error: exit code 1\n")
    own = "exec python -m workflow_lib train --run a"
    logs = [str(tmp_path / name) for name in ("missing.log", "lost.log", "slurm.log")]
    logger.error("Error in rule", extra={"event": "job_error", "jobid": 3, "log": logs, "shellcmd": own})
    extra = {"event": "job_error", "jobid": 4, "log": logs, "shellcmd": "grep nothing"}
    logger.error("Error in rule", extra=extra)
    logger.error("At least one job did not complete successfully.", extra={"event": "error"})
    logger.error("the disk is full")
    events = [
        [event.get(name) for name in ("id", "code", "reason", "text")]
        for event in read_events(tmp_path / "events.jsonl")
    ]
    assert events == [
        [1, 2, "everstep train: returned non-zero exit status 2.", None],
        [1, -2, "everstep train: died with <Signals.SIGINT: 2>.", None],
        [2, None, "its log is empty", None],
        [3, 2, "its log is empty", None],  # of a job on a cluster
        [4, 2, "its log is empty", None],
        [None, None, None, "the disk is full"],
    ]
    assert handler.rejected == {3}  # a command of the user may mean something else with this code

    class Job:
        restart_times = property(lambda job: 3)

        def __init__(self, jobid: int) -> None:
            self.jobid = jobid

    Job.restart_times = recorder.without_retries(vars(Job)["restart_times"], handler.rejected)
    assert [Job(number).restart_times for number in (3, 4)] == [0, 3]


def training(work: Path) -> Training:
    """Return the progress of the third run after three of ten epochs."""
    folder = work / "runs" / ("0" * 20 + RUNS[2][-12:])
    (folder / "aaaaaaaaaaaa-bbbbbbbbbbbb").mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"training": {"select_metric": "val_accuracy", "epochs": 10, "batch_size": 64}}'
    )
    found = Training("0" * 20 + RUNS[2][-12:], work)
    events = EventLog(folder / "aaaaaaaaaaaa-bbbbbbbbbbbb" / "events.jsonl")
    events.append("epoch", **EPOCH)
    events.append("log", level="warning", message="the disk is slow")
    assert found.update() == ["the disk is slow"]
    assert found.update() == []
    return found


def test_the_progress_of_a_training_is_read_from_its_events(tmp_path: Path) -> None:
    found = training(tmp_path)
    assert (found.place, found.loss, found.value) == ("epoch 3/10", 0.5, 0.875)
    assert 30 < (found.left_s or 0.0) <= 35


def shown(width: int, height: int, work: Path) -> list[str]:
    """Return the lines of the live view on a terminal of this size."""
    return drawn(pipeline(), {f"train {RUNS[2]}": training(work)}, width, height)


def drawn(made: Pipeline, trainings: dict[str, Training], width: int, height: int) -> list[str]:
    written = StringIO()
    console = Console(width=width, height=height, force_terminal=True, color_system=None, file=written)
    console.print(screen.view(made, trainings, elapsed_s=90, width=width, height=height))
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_the_view_fits_80_columns_and_names_every_run(tmp_path: Path) -> None:
    lines = shown(80, 24, tmp_path)
    assert max(map(len, lines)) <= 80
    assert [line.split()[1] for line in lines if "…" in line] == ["failed", "finished", "training", "waiting"]
    assert all(any(run[-12:] in line for line in lines) for run in RUNS)
    (row,) = (line.split() for line in lines if "training" in line.split())
    assert row[2:] == ["3/10", "0.5000", "0.8750", "640", "35", "s"]


def test_the_speed_gives_way_to_names_that_are_then_whole(tmp_path: Path) -> None:
    lines = {width: "".join(shown(width, 24, tmp_path / str(width))) for width in range(80, 130, 2)}
    whole = [width for width, text in lines.items() if "…" not in text]
    assert whole == [*range(whole[0], 130, 2)]
    assert "samples/s" in lines[whole[0] - 2]
    assert "samples/s" not in lines[whole[0]]
    assert "samples/s" in lines[128]


def test_a_wide_terminal_also_shows_steps_and_whole_names(tmp_path: Path) -> None:
    (row,) = (line.split() for line in shown(200, 24, tmp_path) if "training" in line.split())
    assert row == [RUNS[2], "training", "3/10", "150/500", "0.5000", "0.8750", "640", "35", "s"]


def test_a_low_terminal_shows_what_runs_and_counts_the_others(tmp_path: Path) -> None:
    lines = shown(80, 8, tmp_path)
    assert any("training" in line for line in lines)
    assert "and 1 more: 1 finished" in lines
    assert len(lines) <= 8


def row_of(run: str, made: Pipeline, trainings: dict[str, Training]) -> list[str]:
    (row,) = [line.split() for line in drawn(made, trainings, 200, 24) if run in line]
    return row


def test_the_runs_of_a_pack_are_shown_as_trainings(tmp_path: Path) -> None:
    made = pipeline()
    made.packs = {"abc": [RUNS[1], RUNS[2], RUNS[3]]}
    made.jobs = {}
    made.needed = frozenset(RUNS[1:])
    made.apply({"kind": "job", "id": 3, "rule": "pack", "wildcards": {"pack": "abc"}})
    assert [job.name for job in made.trainings()] == [f"train {run}" for run in RUNS[1:]]
    found = training(tmp_path)
    trainings = {f"train {RUNS[2]}": found}
    (workspace,) = tmp_path.glob("runs/*/*-*")
    attempts.create(workspace)
    states = []
    for change in (
        lambda: None,
        lambda: attempts.begin(workspace, "a"),
        lambda: attempts.end(workspace, "a", "finished"),
    ):
        change()
        states.append(row_of(RUNS[2], made, trainings)[1:3])
    assert states == [["waiting", "3/10"], ["training", "3/10"], ["trained", "3/10"]]
    assert row_of(RUNS[3], made, trainings)[1:] == ["waiting"]


def test_the_study_of_a_pack_is_shown_and_counted(tmp_path: Path) -> None:
    made = pipeline()
    made.runs = (*RUNS, TUNED)
    made.needed, made.packs, made.prepared = frozenset({TUNED}), {"abc": []}, tmp_path
    made.counts = {"trial": 3, "train": 1}
    made.jobs = {}
    made.apply({"kind": "job", "id": 3, "rule": "pack", "wildcards": {"pack": "abc"}})
    study = tmp_path / "abc" / ready.STUDY
    for number in (0, 1):
        files.write_json(layout.suggestion_file(study, number), {})
    files.write_json(layout.trial_file(study, 0), {})
    (job,) = made.trainings()
    assert (job.name, job.reference(Path("results"))) == ("trial 1", str(layout.suggestion_file(study, 1)))
    assert made.phases() == {"trials": (1, 3), "trainings": (0, 1)}
    assert row_of("trial 1", made, {}) == ["trial", "1", "training"]
    files.write_json(layout.trial_file(study, 1), {})
    files.write_json(layout.best_file(study), {})
    (job,) = made.trainings()
    assert job.reference(Path("results")) == str(layout.best_file(study))
    made.apply({"kind": "finished", "id": 3})
    made.trained.add(("train", TUNED))
    for id, wildcards in enumerate(({"number": "0000", "study": "s"}, {"number": "0002", "study": "s"}), 4):
        made.apply({"kind": "job", "id": id, "rule": "trial", "wildcards": wildcards})
        made.apply({"kind": "finished", "id": id})
    assert made.phases() == {"trials": (3, 3), "trainings": (1, 1)}  # one of them counts once
    assert row_of(TUNED, made, {}) == [TUNED, "trained"]


def test_below_a_view_a_run_has_one_line(tmp_path: Path) -> None:
    folder = layout.run_dir(tmp_path, RUNS[0])
    best = {"metric": "val_loss", "value": 0.25, "epoch": 3, "step": 30}
    files.write_json(folder / layout.TRAIN, {"best": best})
    files.write_json(folder / layout.EVALUATION, {"split": "test", "metrics": {"val_loss": {"value": 0.5}}})
    assert lines.of_job(Job("train", {"run": RUNS[0]}, FINISHED), tmp_path, is_brief=True) is None
    told = lines.of_job(Job("evaluate", {"run": RUNS[0]}, FINISHED), tmp_path, is_brief=True)
    assert told == f"{RUNS[0]}: val_loss 0.2500 at epoch 3; test val_loss 0.5000"
    files.write_json(folder / layout.TRAIN, {"state": "diverged"})
    assert "diverged" in str(lines.of_job(Job("train", {"run": RUNS[0]}, FINISHED), tmp_path, is_brief=True))


def test_the_same_reason_is_said_once() -> None:
    first = Job("report", {}, FAILED, reason="no " * 200)
    said = str(lines.of_job(first, Path("results")))
    assert said.startswith("report failed: no no")
    assert len(said) < 220
    again = Job("report", {}, FAILED, reason=first.reason, before=first)
    assert lines.of_job(again, Path("results")) == "report failed again, for the same reason"


def test_a_narrow_terminal_clips_no_value(tmp_path: Path) -> None:
    lines = shown(40, 24, tmp_path)
    assert max(map(len, lines)) <= 40
    assert [line.split() for line in lines if line.startswith("run")] == [["run", "state", "ETA"]]
    (row,) = (line.split() for line in lines if "training" in line.split())
    assert row[2:] == ["35", "s"]


def test_a_training_in_the_queue_of_a_cluster_is_queued_until_it_begins(tmp_path: Path) -> None:
    made = pipeline()
    trainings = {f"train {RUNS[2]}": training(tmp_path)}
    (workspace,) = tmp_path.glob("runs/*/*-*")
    attempts.create(workspace)
    states = [row_of(RUNS[2], made, trainings)[1]]
    made.is_local = False
    states.append(row_of(RUNS[2], made, trainings)[1])
    attempts.begin(workspace, "a")
    states.append(row_of(RUNS[2], made, trainings)[1])
    assert states == ["training", "queued", "training"]
    assert lines.of_end("a", trainings[f"train {RUNS[2]}"]) is None
    attempts.end(workspace, "a", "stopped by SIGTERM", step=1200)
    assert lines.of_end("train a", trainings[f"train {RUNS[2]}"]) == "train a: stopped by SIGTERM at step 1,200; saved"
