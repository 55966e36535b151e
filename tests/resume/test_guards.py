"""A training that cannot continue names the cause, the place and the last state; hooks see consistent states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.resume.conftest import Fresh
from tests.support.cases import COUNTED, with_ranks
from tests.support.project import FAILED, FINISHED, PASS, SETTINGS, STOPPED, Project, merged, prepare
from tests.support.repository import ROOT
from tests.support.warm import Warm
from workflow_lib.errors import UserError
from workflow_lib.store.events import read_events
from workflow_lib.training.batches import epoch_order

HOOKED: dict[str, Any] = {"training": {"hooks": "tests.plugins.watching"}}
USER_ERROR = 2


def diverged(run: Project) -> dict[str, Any]:
    """Return the event of a training that diverged."""
    (event,) = [one for one in read_events(run.workspace / "events.jsonl") if one["kind"] == "diverged"]
    return event


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        ("a_loss_is_infinite", "loss"),
        ("a_gradient_is_not_a_number", "gradient"),
        ("a_gradient_is_not_a_number_on_a_device", "loss or gradient"),
    ],
)
def test_a_step_that_diverges_is_not_saved_and_is_named_with_its_samples(fresh: Fresh, plant: str, what: str) -> None:
    run = fresh({"training": {"clip_norm": None, "log_every_steps": 3}})
    assert run.attempt(plant=f"tests.plugins.plants:{plant}") == FAILED
    assert [row["step"] for row in read_events(run.workspace / "steps.jsonl")] == [3, 6, 9, 12, 15, 18]
    last = run.log.splitlines()[-1]
    assert f"the training diverged: a {what} of step 20 (epoch 2) is not finite" in last
    newest = run.newest_step()
    assert 0 < newest < 20
    assert f"The state of step {newest} is kept: " in last
    assert f"step-{newest:012d}" in last
    batch = epoch_order(0, 1, 1168)[2 * 66 : 3 * 66].tolist()
    event = diverged(run)
    assert (event["step"], event["epoch"], event["samples"]) == (20, 2, batch)
    assert ", ".join(map(str, batch[:20])) in last


@pytest.mark.parametrize(
    ("plant", "found_by"), [("a_loss_of_rank_one_is_infinite", {0, 1}), ("only_a_loss_of_rank_one_is_infinite", {1})]
)
def test_a_loss_that_diverges_on_one_rank_is_named_with_its_samples_and_no_logged_row_is_lost(
    fresh: Fresh, plant: str, found_by: set[int]
) -> None:
    seldom = {"training": {"epochs": 3, "log_every_steps": 3}, "checkpoint": {"interval_steps": 1000}}
    run = fresh(merged(with_ranks(2), seldom))
    assert run.attempt(plant=f"tests.plugins.plants:{plant}") == FAILED
    last = run.log.splitlines()[-1]
    assert "a loss of step 20 (epoch 3) is not finite" in last
    batch = epoch_order(0, 2, 1168)[3 * 132 : 4 * 132].tolist()
    assert ", ".join(map(str, batch[66:86])) in last
    events = [one for one in read_events(run.workspace / "events.jsonl") if one["kind"] == "diverged"]
    assert {event["rank"] for event in events} == found_by
    assert [(event["what"], event["samples"]) for event in events if event["rank"] == 1] == [("loss", batch[66:])]
    assert all(event["samples"] == batch for event in events if event["rank"] == 0)
    assert [row["step"] for row in read_events(run.workspace / "steps.jsonl")] == [3, 6, 9, 12, 15, 18]


def test_code_that_fails_on_an_infinite_loss_is_not_the_cause(fresh: Fresh) -> None:
    run = fresh(merged(with_ranks(2), {"training": {"epochs": 3}}))
    assert run.attempt(plant="tests.plugins.plants:code_fails_on_an_infinite_loss") == FAILED
    assert "the training diverged: a loss of step 20 (epoch 3) is not finite" in run.log.splitlines()[-1]


def test_a_gradient_that_only_overflows_the_loss_scale_does_not_end_the_training(fresh: Fresh) -> None:
    run = fresh({"training": {"precision": "fp16", "clip_norm": None}})
    assert run.attempt(plant="tests.plugins.plants:a_gradient_is_not_a_number") == FINISHED


def test_a_hook_is_called_after_each_validation_and_after_each_epoch(reference: Fresh) -> None:
    """Validations follow every sixth step and the last one, epochs have 17 steps."""
    called = (reference(merged(COUNTED, HOOKED)).folder / "called.txt").read_text().splitlines()
    assert [line for line in called if not line.startswith("step")] == [
        "start 0 0",
        *("validation 6 0", "validation 12 0", "epoch 17 1", "validation 18 1", "validation 24 1", "validation 30 1"),
        *("epoch 34 2", "validation 36 2", "validation 40 2", "end 40 2"),
    ]


def test_hooks_are_called_once_for_each_step_and_again_for_a_repeated_step(fresh: Fresh, reference: Fresh) -> None:
    straight, run = reference(HOOKED), fresh(HOOKED)
    steps = [f"step {step} {(step - 1) // 17}" for step in range(1, 52)]
    expected = ["start 0 0"]
    for epoch in range(3):
        end = f"{17 * (epoch + 1)} {epoch + 1}"
        expected += [*steps[17 * epoch : 17 * (epoch + 1)], f"validation {end}", f"epoch {end}"]
    assert (straight.folder / "called.txt").read_text().splitlines() == [*expected, "end 51 3"]
    assert run.attempt({"point": "commit", "count": 23, "signal": "SIGKILL"}) == FAILED
    assert run.attempt({"point": "validate", "count": 2, "signal": "SIGTERM"}) == STOPPED
    assert run.verdict(reference(HOOKED)) == PASS
    called = (run.folder / "called.txt").read_text().splitlines()
    epochs = dict.fromkeys(
        line for line in called if line.startswith("epoch")
    )  # repeated if the save of the first epoch was slow
    assert list(epochs) == [f"epoch {17 * n} {n}" for n in (1, 2, 3)]
    assert set(called) >= {*expected, "end 51 3"}
    assert called.count("step 23 1") == 2


@pytest.mark.parametrize("part", ["hooks", "model"])
def test_changed_code_of_the_user_starts_the_training_again_a_changed_comment_does_not(
    tmp_path: Path, warm: Warm, part: str
) -> None:
    """The log names the state that the earlier code trained, which is not removed."""
    source = {"hooks": "watching", "model": "noisy"}[part]
    files = {"mine/own.py": (ROOT / "tests" / "plugins" / f"{source}.py").read_text()}
    changes = {"training": {"hooks": "mine.own"}} if part == "hooks" else {"model": {"name": "mine.own"}}
    run = prepare(tmp_path / "project", warm, merged(SETTINGS, changes), files)
    assert run.attempt({"point": "commit", "count": 20, "signal": "SIGTERM"}) == STOPPED
    text = run.folder / "mine" / "own.py"
    text.write_text(text.read_text() + "\n# changed\n")
    assert run.attempt({"point": "commit", "count": 5, "signal": "SIGTERM"}) == STOPPED
    assert "resumes at step 20" in run.log
    assert "not exact" not in run.log
    (before,) = (run.folder / "work" / "runs").glob("*/*/checkpoints")
    text.write_text(text.read_text() + "\nCHANGED = True\n")
    assert run.attempt() == FINISHED
    assert "other code trained this run up to step 25" in run.log
    found = set((run.folder / "work" / "runs").glob("*/*/checkpoints"))
    assert before in found
    assert len(found) == 2


def test_a_resume_names_another_number_of_threads(fresh: Fresh) -> None:
    run = fresh({"runtime": {"threads": 1}})
    assert run.attempt({"point": "commit", "count": 20, "signal": "SIGTERM"}) == STOPPED
    experiment = run.folder / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("threads: 1", "threads: 2"))
    assert run.attempt() == FINISHED
    assert "not exact from here: threads changed since the checkpoint" in run.log
    assert run.sealed().about["exact"] is False


def test_the_hooks_in_the_documentation_work(tmp_path: Path, warm: Warm) -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    files = {"mypackage/watch.py": text.partition("```python\n")[2].partition("```")[0]}
    changes = {"training": {"hooks": "mypackage.watch", "epochs": 1}}
    run = prepare(tmp_path / "project", warm, merged(SETTINGS, changes), files)
    assert run.attempt() == FINISHED
    assert "largest loss of a step" in run.log


def test_a_kernel_that_strict_determinism_rejects_is_named(fresh: Fresh) -> None:
    run = fresh({"model": {"name": "tests.plugins.scattering"}})
    assert run.attempt() == USER_ERROR
    assert "training.determinism: strict does not allow `put_`: it has no deterministic" in run.log.splitlines()[-1]


def test_a_kernel_that_is_not_deterministic_is_named_once_and_remembered(fresh: Fresh) -> None:
    run = fresh({"model": {"name": "tests.plugins.scattering"}, "training": {"determinism": "warn"}})
    assert run.attempt({"point": "commit", "count": 20, "signal": "SIGTERM"}) == STOPPED
    assert run.log.count("put_ has no deterministic kernel here") == 1
    assert run.attempt() == FINISHED
    assert run.log.count("put_ has no deterministic kernel here") == 2  # once in each attempt
    assert run.sealed().about["exact"] is False


def test_a_training_that_only_warns_of_kernels_has_the_bits_of_a_strict_one(fresh: Fresh) -> None:
    runs = [fresh({"training": {"determinism": determinism, "epochs": 1}}) for determinism in ("strict", "warn")]
    assert [run.attempt() for run in runs] == [FINISHED, FINISHED]
    assert runs[1].sealed().about["exact"] is True
    strict, warned = (load_file(run.output.with_name("model.safetensors")) for run in runs)
    assert all(torch.equal(weight, warned[name]) for name, weight in strict.items())


def test_a_missing_compiler_is_reported(fresh: Fresh) -> None:
    run = fresh({"training": {"compile": True}})
    assert run.warm.run(run.order(CXX="no-compiler-of-this-name")) == USER_ERROR
    assert "training.compile: needs a C++ compiler, and there is no `no-compiler-of-this-name`" in run.log


def test_a_batch_larger_than_the_split_is_rejected_before_a_rank_is_started(tmp_path: Path, warm: Warm) -> None:
    table = "\n".join(["x,y", *(f"{number},{number % 2}" for number in range(100))])
    data = {"name": "table", "params": {"path": "data.csv", "target": "y"}}
    changes = {"data": data, "model": {"name": "tabular"}, "training": {"batch_size": 66}}
    run = prepare(tmp_path / "project", warm, merged(SETTINGS, changes), {"data.csv": table})
    assert run.attempt() == USER_ERROR
    last = run.log.splitlines()[-1]
    assert last.endswith("training.batch_size: 66 samples are more than the training split has; allowed: at most 65")
    assert not list(run.folder.glob("work/runs/*/*/attempts"))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("wide", "gives torch.float32 (2, 11) for inputs (2, 1, 8, 8); the data needs floats (2, 10)"),
        ("scores", "gives a dict of scores (not of `logits`) for inputs (2, 1, 8, 8); the data needs floats (2, 10)"),
        ("frozen", "the result of build() of tests.plugins.unfit has no weights to train"),
        ("none", "the result of build() of tests.plugins.unfit is not a torch.nn.Module"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_rejected(fresh: Fresh, kind: str, what: str) -> None:
    run = fresh({"model": {"name": "tests.plugins.unfit", "params": {"kind": kind}}})
    assert run.attempt() == USER_ERROR
    assert what in run.log.splitlines()[-1]


def test_a_normalisation_of_a_single_value_is_an_error_of_the_settings(fresh: Fresh) -> None:
    run = fresh({"training": {"batch_size": 4, "accumulation_steps": 4}})
    assert run.attempt() == UserError.exit_code
    said = run.log.splitlines()[-1]
    assert "a batch of 4 in 4 micro-batches (training.accumulation_steps) on 1 processes" in said
    assert run.newest_step() == 0
