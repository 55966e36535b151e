"""Incomplete reports: a run that failed or diverged is a row with its reason."""

from __future__ import annotations

import csv

from tests.workflow.conftest import Project

TWO = """\
name: tiny
training: {epochs: 2, hooks: mine.hooks}
evaluate: {bootstrap: 20}
export: {batch_sizes: [1, 2]}
sweep: {grid: {optimizer.lr: [0.01, 1.0]}}
"""
HOOKS = """\
def on_epoch_end(state):
    if state.learning_rate > 0.5:
        raise ValueError("too fast")
"""


def rows(project: Project) -> list[dict[str, str]]:
    with (project.folder / "results/tiny/runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_with_a_run_that_fails_has_a_report(project: Project) -> None:
    project.write(TWO)
    (project.folder / "mine").mkdir()
    (project.folder / "mine/hooks.py").write_text(HOOKS)
    outcome = project.run()
    assert outcome.code != 0
    assert "results/tiny/report.html" in outcome.output
    done, failed = rows(project)
    assert done["accuracy"]
    assert not done["state"]
    assert failed["state"] == "not trained"
    assert "ValueError: too fast" in failed["reason"]
    assert "lr1" in failed["name"]
    page = (project.folder / "results/tiny/report.html").read_text()
    assert "Incomplete: 1 of 2 runs has no result" in page
    assert failed["name"] in page
    assert "report (incomplete)" in page
    assert "best run" in project.everstep("summary", "--results", "results/tiny").stdout
    project.edit("config/tiny.yaml", "1.0]", "0.02]")
    project.make()
    page = (project.folder / "results/tiny/report.html").read_text()
    assert len(rows(project)) == 2
    assert "state" not in rows(project)[0]
    assert "incomplete-title" not in page


def test_an_experiment_without_results_has_a_report_with_the_reasons(project: Project) -> None:
    project.write(TWO.replace("0.01, ", "").replace("1.0]", "1.0e+30]").replace(", hooks: mine.hooks", ""))
    assert project.run().code != 0
    (failed,) = rows(project)
    assert "the training diverged" in failed["reason"]
    assert "Incomplete: 1 of 1 runs has no result" in (project.folder / "results/tiny/report.html").read_text()
    shown = project.everstep("summary", "--results", "results/tiny")
    assert shown.returncode == 2
    assert "no run of the experiment has a result" in shown.stderr
