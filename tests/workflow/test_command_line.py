"""Arguments of `snakemake`, and the messages if the pipeline cannot start."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.support.repository import ROOT
from tests.workflow.conftest import Project


def test_settings_on_the_command_line_override_the_file(project: Project) -> None:
    project.make("results/tiny/plan.json", "--config", "set=training.epochs=3 seed=7")
    frozen = [json.loads(path.read_text()) for path in (project.folder / "work/runs").glob("*/config.json")]
    assert {(run["training"]["epochs"], run["seed"]) for run in frozen} == {(3, 7)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "epochs=3"], "the only name it takes is 'set'"),
        (["--config", "training.epochs=3"], "--config training.epochs: the only name it takes is 'set'"),
        (["--config", "epochs"], "--config epochs: the only name it takes is 'set'"),
        (["--configfile", "config/none.yaml"], "config/none.yaml: cannot be read: No such file or directory"),
        (["--config", "set=training.epoch=3"], "did you mean `epochs`"),
        (["--config", "set=training.epochs=-1"], "training.epochs"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(project: Project, arguments: list[str], message: str) -> None:
    outcome = project.run("--dry-run", *arguments)
    assert outcome.code == 2
    assert message in outcome.output
    assert "Traceback" not in outcome.output
    assert "Building DAG" not in outcome.output


@pytest.mark.parametrize("profile", sorted(path.name for path in (ROOT / "profiles").iterdir()))
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_an_experiment_file_executes_no_code(project: Project, profile: str, suffix: str) -> None:
    """Without the profile, Snakemake would run the definitions of a YAML file, even in a dry run."""
    run = "open('ran', 'w')"
    settings = {"__use_yte__": True, "__definitions__": [run], "name": "tiny", "?'x'": f"?{run}"}
    path = project.folder / f"config/template.{suffix}"
    path.write_text(json.dumps(settings) if suffix == "json" else yaml.safe_dump(settings))
    outcome = project.run("--dry-run", "--profile", f"profiles/{profile}", "--configfile", str(path))
    assert outcome.code == 2
    assert "__use_yte__: no such setting" in outcome.output
    assert not (project.folder / "ran").exists()


def test_another_file_of_the_same_name_overwrites_nothing(finished: Project) -> None:
    results = finished.folder / "results/tiny"
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    shutil.copy(finished.folder / "config/tiny.yaml", finished.folder / "config/copy.yaml")
    finished.edit("config/copy.yaml", "epochs: 2", "epochs: 3")
    for arguments in ([], ["--dry-run"]):
        outcome = finished.run(*arguments, "--configfile", "config/copy.yaml")
        assert outcome.code == 2
        assert "results/tiny belongs to config/tiny.yaml" in outcome.output
        assert "Traceback" not in outcome.output
        assert "Building DAG" not in outcome.output
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    assert finished.run().is_nothing
    (finished.folder / "config/tiny.yaml").unlink()
    output = finished.make("results/tiny/plan.json", "--configfile", "config/copy.yaml").output
    assert "which is gone; it now belongs to config/copy.yaml" in output


def test_a_disk_error_is_one_message(project: Project) -> None:
    (project.folder / ".snakemake").mkdir()
    (project.folder / ".snakemake/controllers").touch()
    outcome = project.run("--dry-run")
    assert outcome.code == 1
    assert "everstep: Snakemake cannot write to .snakemake/controllers: Not a directory" in outcome.output
    assert "common.smk" not in outcome.output
    assert "Traceback" not in outcome.output


def test_a_damaged_record_of_snakemake_is_one_message(finished: Project) -> None:
    damaged = min((finished.folder / ".snakemake/metadata").iterdir())
    damaged.write_bytes(b"\xff\xfe")
    outcome = finished.run("--dry-run")
    assert outcome.code == 1
    message = f"everstep: .snakemake/metadata/{damaged.name}, a record of Snakemake, cannot be read"
    assert message in outcome.output
    assert "move .snakemake away" in outcome.output
    assert "Traceback" not in outcome.output
    (finished.folder / ".snakemake").rename(finished.folder / "away")
    assert {rule for rule, _ in finished.plan()} == {"plan", "evaluate", "export", "report"}  # nothing is trained again


def test_a_duplicate_key_is_rejected(project: Project) -> None:
    project.write("name: tiny\nseed: 1\nseed: 2\n")
    outcome = project.run("--dry-run")
    assert outcome.code == 2
    assert "seed" in outcome.output
    assert "config/tiny.yaml" in outcome.output


def test_a_users_file_inherits_nothing_from_the_default(project: Project) -> None:
    assert (project.folder / "config/config.yaml").exists()
    project.write("name: bare\n")
    trained = [run for rule, run in project.plan() if rule in ("train", "trial")]
    assert len(trained) == 1
    assert str(trained[0]).startswith("bare-")


def test_the_default_experiment_is_the_one_in_config(project: Project) -> None:
    command = [word for word in project.command("--dry-run") if word not in ("--configfile", project.config)]
    outcome = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "rule report:" in outcome.stdout + outcome.stderr


def test_the_linter_reports_only_the_missing_container(project: Project) -> None:
    """Everstep has no container image: it runs in the environment that `scripts/setup` makes."""
    outcome = project.run("--lint")
    titles = set(re.findall(r"^    \* (.*):$", outcome.output, re.MULTILINE))
    assert titles == {"Specify a conda environment or container for each rule."}, outcome.output
