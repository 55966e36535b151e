"""After a crash, the same command resumes; a failing run does not stop the others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.workflow.conftest import Project

# Some seconds of training with a checkpoint every 50 steps; while there is a file `hold`, each step takes 0.1 s more.
LONG = """\
name: long
model: {name: mine.held}
training:
  epochs: 40
  batch_size: 16
checkpoint:
  interval_steps: 50
"""
HELD = """\
import time
from pathlib import Path

from workflow_lib.models import mlp

Params = mlp.Params


def build(params, spec):
    model = mlp.build(params, spec)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.1 * Path("hold").exists()))
    return model
"""


def write_long(project: Project) -> Path:
    """Write the long experiment; return the path of the file that slows it down."""
    project.write(LONG)
    (project.folder / "mine").mkdir()
    (project.folder / "mine/held.py").write_text(HELD)
    return project.folder / "hold"


def checkpoints(project: Project) -> list[Path]:
    """Return the folders of all checkpoints."""
    return sorted((project.folder / "work/runs").glob("*/*/checkpoints/step-*"))


def attempts(project: Project) -> list[dict[str, Any]]:
    """Return the records of all training attempts."""
    paths = (project.folder / "work/runs").glob("*/*/attempts/*.json")
    return [json.loads(path.read_text()) for path in paths]


def the_run(project: Project) -> str:
    """Return the id of the only run."""
    return str(json.loads((project.folder / "results/long/plan.json").read_text())["runs"][0]["id"])


def test_after_a_crash_the_same_command_resumes_from_the_checkpoint(project: Project) -> None:
    hold = write_long(project)
    project.make("results/long/plan.json")
    target = f"results/long/runs/{the_run(project)}/train.json"
    with project.running(target) as running:
        running.wait_until(lambda: len(checkpoints(project)) >= 2)
        hold.touch()
        running.kill()
    hold.unlink()
    assert list((project.folder / ".snakemake/locks").iterdir()), "the killed Snakemake left no lock"
    assert not (project.folder / target).exists()

    outcome = project.make(target)
    assert "its lock is removed" in outcome.output
    assert {rule for rule, _ in outcome.jobs} == {"train"}
    assert (project.folder / target).exists()
    assert len(attempts(project)) == 2
    assert max(attempt["resumed_step"] or 0 for attempt in attempts(project)) > 0


def test_the_lock_of_a_running_snakemake_is_respected(project: Project) -> None:
    hold = write_long(project)
    with project.running("--until", "train") as first:
        first.wait_until(lambda: checkpoints(project))
        hold.touch()
        second = project.run("--until", "train")
        assert second.code != 0
        assert "lock" in second.output.lower()
        hold.unlink()
        outcome = first.outcome()
        assert outcome.code == 0, outcome.output
    assert len(attempts(project)) == 1


def test_a_broken_experiment_file_does_not_affect_running_jobs(project: Project) -> None:
    hold = write_long(project)
    with project.running("--until", "evaluate") as running:
        running.wait_until(lambda: checkpoints(project))
        hold.touch()
        project.write("]] name: [broken")
        hold.unlink()
        outcome = running.outcome()
        assert outcome.code == 0, outcome.output
    assert len(list((project.folder / "results/long/runs").glob("*/evaluation.json"))) == 1


def test_the_snakemake_inside_a_job_reads_the_frozen_experiment(project: Project) -> None:
    """A rule with `run:` starts a Snakemake of its own, as every cluster job does."""
    probe = """
rule spoil:
    output: "spoilt.txt"
    shell: "echo ']] name: [broken' > config/tiny.yaml; touch {output}"

rule probe:
    input: "spoilt.txt"
    output: "probe.txt"
    run:
        Path(output[0]).write_text(" ".join([experiment.name, *runs()]))
"""
    with (project.folder / "rules/report.smk").open("a") as file:
        file.write(probe)
    project.make("probe.txt", "--config", "set=seed=5")
    name, *runs = (project.folder / "probe.txt").read_text().split()
    assert name == "tiny"
    assert len(runs) == 2
    assert "broken" in (project.folder / "config/tiny.yaml").read_text()
    snapshot = next((project.folder / "work/experiments").glob("*.json"))
    assert json.loads(snapshot.read_text())["seed"] == 5


def test_a_failing_run_stops_no_other_and_is_listed_at_the_end(project: Project) -> None:
    broken = '''"""A model that cannot be built."""

from typing import Any

from workflow_lib.plugins import Section


class Params(Section):
    """No settings."""


def build(params: Params, spec: Any) -> Any:
    raise ValueError("this model cannot be built")
'''
    (project.folder / "workflow_lib/models/broken.py").write_text(broken)
    project.write("name: mixed\ntraining: {epochs: 1}\nsweep: {grid: {model.name: [broken, mlp]}}\n")
    outcome = project.run("--until", "train", "--retries", "0")
    assert outcome.code == 1
    trained = list((project.folder / "results/mixed/runs").glob("*/train.json"))
    assert [path.parent.name.split("-")[1] for path in trained] == ["mlp"]
    ending = outcome.output[outcome.output.rindex("everstep: train") :]
    assert re.search(r"train mixed mixed-broken-[0-9a-f]{12} failed: .*this model cannot be built", ending)
    assert re.search(r"log: logs/train/mixed/mixed-broken-[0-9a-f]{12}\.log", ending)
    assert "--configfile config/tiny.yaml" in ending


def test_a_second_snakemake_names_the_running_one(project: Project) -> None:
    write_long(project).touch()
    with project.running() as first:
        first.wait_until(lambda: list((project.folder / ".snakemake/locks").glob("*.lock")))
        second = project.run()
        assert second.code == 1
        assert "--unlock" not in second.output
        assert (
            f"another Snakemake uses the same files in {project.folder}: pid {first.process.pid}, since"
            in second.output
        )
        assert list((project.folder / ".snakemake/locks").glob("*.lock"))
        assert first.process.poll() is None
