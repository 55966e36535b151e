"""A failure that is certain to recur is not retried, whatever `retries` says; a diverged sweep point is a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.workflow.conftest import Outcome, Project
from tests.workflow.test_incomplete import rows

SWEEP = """\
name: tiny
training: {epochs: 2}
evaluate: {bootstrap: 20}
export: {batch_sizes: [1, 2]}
tracking: {to: [tensorboard]}
sweep: {grid: {optimizer.lr: [0.01, 1.0e+30]}}
"""
ALONE = """\
name: tiny
training: {epochs: 2}
optimizer: {lr: 1.0e+30}
"""
HOOKED = """\
name: tiny
training: {epochs: 2, hooks: mine.hooks}
"""
HOOKS = """\
def on_epoch_end(state):
    raise LookupError("no such table")
"""
# it needs a real number, so that it cannot be built on the meta device, and only the training sees what is wrong
WITHOUT_WEIGHTS = """\
import torch
from workflow_lib.plugins import Section

class Params(Section):
    pass

def build(params, spec):
    return torch.nn.Flatten(int(torch.ones(()).item()))
"""
NOT_AGAIN = "is not retried: it would fail in the same way"


def statement(project: Project, run: str, name: str = "train.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.folder / "results/tiny/runs" / run / name).read_text())
    return content


def tries(outcome: Outcome) -> list[str]:
    """Return the last line of the log of each try, which Snakemake prints."""
    return [line for line in outcome.output.splitlines() if line.startswith("everstep train: ")]


def attempts(project: Project) -> list[Path]:
    return list((project.folder / "work/runs").glob("*/*/attempts/*.json"))


def status_of(project: Project) -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in json.loads(project.everstep("status", "--json").stdout)}


def test_a_point_of_a_sweep_that_diverges_is_a_result(project: Project) -> None:
    project.write(SWEEP)
    outcome = project.make()
    done, diverged = rows(project)
    assert done["accuracy"]
    assert not done["state"]
    assert diverged["state"] == "diverged"
    assert "the training diverged" in diverged["reason"]
    name = diverged["name"]
    assert "lr1e" in name
    assert f"diverged   {name}" in outcome.output
    page = (project.folder / "results/tiny/report.html").read_text()
    assert "1 of 2 runs diverged" in page
    assert diverged["reason"].partition(":")[0] in page
    assert "incomplete" not in page.lower().partition("<script>")[0]

    for file in ("train.json", "evaluation.json", "export.json"):
        content = statement(project, name, file)
        assert (content["state"], content["reason"]) == ("diverged", diverged["reason"])
    for file in ("model.safetensors", "predictions.csv", "model.onnx"):
        assert not (project.folder / "results/tiny/runs" / name / file).read_bytes()
    row = status_of(project)[name]
    assert row["state"] == "diverged"
    assert [attempt["ended"][:8] for attempt in row["attempts"]] == ["diverged"]
    assert "diverged" in project.everstep("trace", f"results/tiny/runs/{name}/export.json").stdout
    followed = project.everstep("track", project.config, "--follow")
    assert followed.returncode == 0, followed.stderr
    assert row["digest"] not in project.everstep("clean").stdout
    assert project.run().is_nothing

    known = len(attempts(project))
    (project.folder / "results/tiny/runs" / name / "train.json").unlink()
    project.make()
    assert len(attempts(project)) == known
    assert statement(project, name)["reason"] == diverged["reason"]
    assert project.everstep("retrain", name).returncode == 0
    again = project.make()
    assert {("train", name), ("report", None)} <= again.jobs
    assert len(attempts(project)) == known + 1


def test_a_sweep_whose_points_all_diverge_fails_with_the_reasons(project: Project) -> None:
    project.write(SWEEP.replace("0.01", "1.0e+29"))
    outcome = project.run()
    assert outcome.code != 0
    assert "there is nothing to report: every run diverged" in outcome.output
    assert [row["state"] for row in rows(project)] == ["diverged"] * 2
    page = (project.folder / "results/tiny/report.html").read_text()
    assert "2 of 2 runs have no result" in page
    assert page.count("the training diverged") == 2


def test_an_only_run_that_diverges_fails_and_is_not_trained_again(project: Project) -> None:
    project.write(ALONE)
    outcome = project.run("--retries", "2")
    lines = tries(outcome)
    assert "is retried, since" not in outcome.output  # nothing changed since the failure
    assert outcome.code != 0
    assert len(lines) == 3
    assert len(attempts(project)) == 1
    assert [NOT_AGAIN in line for line in lines] == [False, True, True]
    (failed,) = rows(project)
    assert failed["state"] == "not trained"
    assert "the training diverged" in failed["reason"]
    (row,) = status_of(project).values()
    assert row["state"] == "diverged"
    assert "is not finite" in row["why"]
    # As a point of a sweep, the same run is a result, without another training.
    project.write(ALONE + "sweep: {grid: {optimizer.lr: [0.01, 1.0e+30]}}\n")
    project.make()
    assert {row["state"] for row in rows(project)} == {"", "diverged"}
    assert len(attempts(project)) == 2


def test_an_exception_of_a_hook_is_retried_once(project: Project) -> None:
    project.write(HOOKED)
    (project.folder / "mine").mkdir()
    (project.folder / "mine/hooks.py").write_text(HOOKS)
    outcome = project.run("--retries", "3")
    lines = tries(outcome)
    assert "is retried, since" not in outcome.output  # nothing changed since the failure
    assert outcome.code != 0
    assert len(lines) == 4
    assert len(attempts(project)) == 2
    assert all("LookupError: no such table" in line for line in lines)
    assert [NOT_AGAIN in line for line in lines] == [False, False, True, True]
    (project.folder / "mine/hooks.py").write_text(HOOKS.replace("raise LookupError", "str"))
    project.make()


def test_settings_that_the_training_rejects_are_tried_once(project: Project) -> None:
    project.write(ALONE.replace("lr: 1.0e+30", "lr: 0.01") + "model: {name: mine.net}\n")
    (project.folder / "mine").mkdir()
    (project.folder / "mine/net.py").write_text(WITHOUT_WEIGHTS)
    lines = tries(project.run("--retries", "2"))
    assert len(lines) == len(attempts(project)) == 1
    assert "has no weights to train" in lines[0]
