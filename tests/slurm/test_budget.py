"""Requests of jobs are compared with the running cluster before anything is submitted."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

IMPOSSIBLE = {
    "slurm_partition": "'gpu'",
    "gpu": 0,
    "gres": "'gpu:h100:3'",
    "cpus_per_task": 5,
    "mem_mb": "16001 * attempt",
    "runtime": 481,
    "slurm_extra": "''",
}


def plan(project: Any) -> subprocess.CompletedProcess[str]:
    """Run `everstep plan` with the project's experiment and profile."""
    project.write_profile()
    command = [sys.executable, "-m", "workflow_lib", "plan", "config/slow.yaml", "--profile", "profiles/slurm"]
    return subprocess.run(
        command, cwd=project.folder, env=project.cluster.environment, capture_output=True, text=True, check=False
    )


def test_requests_that_the_cluster_can_grant_pass(project: Any) -> None:
    said = plan(project)
    assert said.returncode == 0, said.stderr
    assert re.search(r"^train +1  preempt +1 +1 +1 +500 +240 +4.0$", said.stdout, re.MULTILINE)
    assert re.search(r"^checked: the cluster \(gpu, preempt, cpu.*\) can grant", said.stdout, re.MULTILINE)


def test_requests_that_it_cannot_grant_are_named_and_nothing_is_submitted(project: Any) -> None:
    project.train = IMPOSSIBLE
    said = plan(project)
    assert said.returncode == 2
    for wrong in ("481 minutes", "type `h100`", "5 CPUs", "16001 MB"):
        assert re.search(rf"train: asks for .*{wrong}.* change profiles/slurm/config.yaml:\d+", said.stderr), wrong
    with project.snakemake() as snakemake:
        snakemake.process.wait()
    assert snakemake.process.returncode == 2
    assert "everstep: nothing was submitted.\ntrain: asks for 481 minutes" in snakemake.log.read_text()
    assert str(project.folder) not in project.cluster.ask("squeue", "--noheader", "--states=all", "--format=%Z")
    assert not project.attempts()


def test_a_partition_that_is_down_is_named(project: Any) -> None:
    project.train = {"slurm_partition": "broken"}
    project.cluster.ask("scontrol", "create", "PartitionName=broken", "Nodes=n1", "State=DOWN")
    try:
        said = plan(project)
    finally:
        project.cluster.ask("scontrol", "delete", "PartitionName=broken")
    assert said.returncode == 2
    assert (
        "train: asks for the partition `broken`, which is down: it starts no jobs; partitions that are up: gpu,"
        in said.stderr
    )
