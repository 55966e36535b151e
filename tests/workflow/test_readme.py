"""Run every command of README.md and CONTRIBUTING.md in a clone with a finished pipeline."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.workflow.conftest import TINY, Project

# Replacements for commands that cannot run unchanged in a test.
INSTEAD = {
    # It would run these tests again.
    "make test": "make --dry-run test",
    # tests/slurm runs it on a real cluster.
    "make slurm-demo": "make --dry-run slurm-demo",
    "snakemake --profile profiles/slurm --jobs 16": "snakemake --profile profiles/slurm --jobs 16 --dry-run",
    # tests/test_gpu_check.py runs its checks without a GPU.
    "scripts/gpu-check": "scripts/gpu-check --list",
    # RUN is a placeholder.
    "everstep accept RUN": "everstep accept $(cd results/tiny/runs; ls -d tiny-* | head -n 1)",
    "everstep compare RUN RUN": "everstep compare $(cd results/tiny/runs; ls -d tiny-*)",
    # It would remove a run that later commands report; tests/workflow/test_code.py tests it.
    "everstep retrain RUN": "everstep retrain --help",
    # It would run until Ctrl-C; tests/serve runs it.
    "everstep serve": "everstep serve --help",
    # Each kill takes time.
    "everstep prove-resume config/quick.yaml --kills 10": "everstep prove-resume config/quick.yaml --kills 1",
}


def commands_of(document: str) -> list[str]:
    """Return each line of each `sh` block."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def make_environment(folder: Path) -> None:
    """Link the environment of the tests into the folder, with a stamp that marks it as up to date."""
    venv = folder / ".venv"
    venv.mkdir()
    for part in ("bin", "lib", "include", "pyvenv.cfg"):
        (venv / part).symlink_to(ROOT / ".venv" / part)
    stamp = subprocess.run(
        ["bash", "-c", "cat pyproject.toml constraints.txt <(pwd) | cksum"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    (venv / "everstep.stamp").write_text(stamp.stdout)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_command_works(document: str, finished: Project) -> None:
    """Slow: a dozen Snakemakes and a prove-resume, with small versions of the experiments."""
    folder = finished.folder
    make_environment(folder)
    for name in ("config/config.yaml", "config/quick.yaml"):
        (folder / name).write_text(TINY)
    environment = os.environ | {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    commands = commands_of(document)
    assert commands
    for command in commands:
        shown = subprocess.run(
            ["bash", "-c", INSTEAD.get(command, command)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, f"{command}\n{shown.stdout}\n{shown.stderr}"
        if "init" in command:
            text = (folder / "config/my.yaml").read_text()
            assert text.count("  epochs: 10\n") == 1
            (folder / "config/my.yaml").write_text(text.replace("  epochs: 10\n", "  epochs: 1\n"))
    if document == "README.md":
        assert (folder / "report.zip").stat().st_size > 100_000


def test_every_replaced_command_is_in_a_document() -> None:
    assert set(INSTEAD) <= set(commands_of("README.md") + commands_of("CONTRIBUTING.md"))
