"""The built wheel in an environment of its own, in an empty folder: a new project, and a Snakefile of one's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.workflow.conftest import WAIT_S

CONFIG = """\
name: mine
model: {name: "nets:Net"}
training: {epochs: 1}
evaluate: {bootstrap: 20}
export: {batch_sizes: [1, 2]}
"""
NET = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
"""
OWN_ALL = """
rule all:
    input:
        "best.txt",


"""
OWN_RULE = """

rule mine:
    input:
        "results/mine/runs.csv",
    output:
        "best.txt",
    shell:
        "head -n 2 {input} > {output}"
"""


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the commands of an environment that has the wheel, and the other packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(packages, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", *folder.glob("*.whl")], check=True)
    return python.parent


def run(command: str, folder: Path, bin_folder: Path) -> str:
    """Run a command as in a shell where only this environment is activated, and return what it prints."""
    environment = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    environment["PATH"] = f"{bin_folder}:/usr/bin:/bin"
    shown = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert shown.returncode == 0, f"{command}\n{shown.stdout}\n{shown.stderr}"
    return shown.stdout


def test_a_project_outside_a_clone(bin_folder: Path, tmp_path: Path) -> None:
    made = run("everstep new mine && everstep path", tmp_path, bin_folder)
    assert "next: cd mine && everstep run" in made
    assert str(bin_folder.parent) in made.splitlines()[-1]
    advice = run(
        "python -c 'from workflow_lib import shipped; print(shipped.how_to_install(chr(120)))'", tmp_path, bin_folder
    )
    assert Path(shlex.split(advice)[3]).read_text() == (ROOT / "constraints.txt").read_text()
    project = tmp_path / "mine"
    (project / "config" / "config.yaml").write_text(CONFIG)
    (project / "nets.py").write_text(NET)
    shown = run("everstep run -- --cores 2", project, bin_folder)
    assert "mine: 7 jobs to run: data, training, evaluation, export, report" in shown
    assert "best run" in shown

    snakefile = project / "Snakefile"
    text = snakefile.read_text().replace("from everstep", "from everstep exclude all")
    snakefile.write_text(text.replace("module everstep:", f"{OWN_ALL}module everstep:") + OWN_RULE)
    run("python -m snakemake --profile $(everstep path)/profiles/local --cores 2", project, bin_folder)
    assert "mine-" in (project / "best.txt").read_text()
