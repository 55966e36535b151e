"""A training on several nodes has one launcher on each, its ranks connect, and an interruption changes no bit."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.fixture
def wide(project: Any) -> Any:
    """The project, with two processes on each of two nodes."""
    path = project.folder / "config" / "slow.yaml"
    path.write_text(path.read_text().replace("runtime: {", "runtime: {nproc: 2, nodes: 2, "))
    project.train = {"gpu": 0, "gres": "gpu:2"}
    return project


def test_two_nodes_with_two_ranks_each_resume_exactly_after_a_preemption(wide: Any, tmp_path: Path) -> None:
    undisturbed = _trained_here(wide, tmp_path / "undisturbed")
    with wide.snakemake() as snakemake:
        snakemake.wait_for(lambda: wide.epochs() >= 5 and wide.running_job())
        job = wide.running_job()
        assert job.node.startswith("n["), "two nodes"
        wide.cluster.occupy(wide.attempts()[0]["node"], seconds=3)
        snakemake.wait_for(lambda: len(wide.attempts()) == 2)
        said = snakemake.until_trained()
    ranks = [line.split() for line in (wide.folder / "ranks.txt").read_text().splitlines()]
    first_node, second_node = _names(job.node)
    assert sorted(ranks[:4]) == [
        ["0", "0", first_node, "0,1"],
        ["1", "1", first_node, "0,1"],
        ["2", "0", second_node, "0,1"],
        ["3", "1", second_node, "0,1"],
    ]
    first, second = wide.attempts()
    assert first["world_size"] == 4
    assert first["reason"] == "stopped by SIGTERM"
    assert second["resumed_step"] == first["step"] > 0
    assert "Trying to restart" not in said
    assert wide.result() == undisturbed


def test_a_model_sharded_over_two_nodes_resumes_exactly_after_a_rank_was_killed(wide: Any, tmp_path: Path) -> None:
    path = wide.folder / "config" / "slow.yaml"
    path.write_text(path.read_text().replace("training: {", "training: {parallel: fsdp, "))
    undisturbed = _trained_here(wide, tmp_path / "undisturbed")
    with wide.snakemake() as snakemake:
        snakemake.wait_for(lambda: wide.epochs() >= 3 and list(wide.workspace.glob("checkpoints/step-*")))
        _second_nodes_ranks(wide)[-1].kill()
        snakemake.wait_for(lambda: len(wide.attempts()) == 2)
        snakemake.until_trained()
    first, second = wide.attempts()
    assert first["reason"].startswith("failed: a rank of another node was killed and left no report")
    assert second["resumed_step"] > 0
    assert wide.result() == undisturbed


def _second_nodes_ranks(wide: Any) -> list[psutil.Process]:
    """Return the ranks of the second node: the children of its launcher."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(wide.folder) and process.environ().get("SLURM_NODEID") == "1":
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.parent() in found and "train" in process.cmdline()]


def _trained_here(wide: Any, folder: Path) -> dict[str, str]:
    """Return the result of the same four ranks on one node without SLURM."""
    subprocess.run(["cp", "-a", str(wide.folder), str(folder)], check=True)
    local = type(wide)(folder, wide.cluster)
    path = folder / "config" / "slow.yaml"
    path.write_text(path.read_text().replace("nproc: 2, nodes: 2", "nproc: 4"))
    local.make_here()
    result: dict[str, str] = local.result()
    return result


def _names(nodes: str) -> list[str]:
    """Return n1 and n2 for `n[1-2]` or `n[1,2]`."""
    numbers = nodes.removeprefix("n[").removesuffix("]").replace("-", ",").split(",")
    return [f"n{number}" for number in numbers]
