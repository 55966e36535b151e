import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workflow_lib.runtime import environment, git

CPU = torch.device("cpu")


def test_the_description_is_json_and_names_packages_and_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    report = json.loads(json.dumps(environment.environment(CPU)))
    assert report["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert report["scheduler"]["SLURM_JOB_ID"] == "77"
    assert report["cpus"] >= 1
    assert report["cpu"]
    assert report["python"]
    assert report["device"] == "cpu"


def test_the_fingerprint_changes_with_processes_and_threads() -> None:
    assert environment.fingerprint(CPU, nproc=2) == environment.fingerprint(CPU, nproc=2)
    assert environment.fingerprint(CPU, nproc=2) != environment.fingerprint(CPU, nproc=3)
    before, threads = environment.fingerprint(CPU), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert environment.fingerprint(CPU) != before
    finally:
        torch.set_num_threads(threads)


def test_deterministic_algorithms_are_in_the_fingerprint() -> None:
    before = environment.fingerprint(CPU)
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not was)
    try:
        assert environment.fingerprint(CPU) != before
    finally:
        torch.use_deterministic_algorithms(was)


def test_no_clock_host_or_job_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.fingerprint(CPU)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert environment.fingerprint(CPU) == before


def test_the_commit_is_that_of_the_folder(tmp_path: Path) -> None:
    assert git.commit(tmp_path) is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit = ["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "First"]
    subprocess.run(commit, check=True)
    found = git.commit(tmp_path)
    assert found is not None
    assert len(found) == 40
    assert set(found) <= set("0123456789abcdef")


GPU = torch.device("cuda", 0)
Imitate = Callable[..., dict[str, Any]]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Imitate:
    """Return the fingerprint of a rank on a GPU with the given properties."""

    def fingerprint(*, nodes: int = 1, nproc: int = 1, **properties: Any) -> dict[str, Any]:
        found = {"major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 141 << 30, **properties}
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**found))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        return environment.fingerprint(GPU, nodes=nodes, nproc=nproc)

    return fingerprint


def test_a_slice_of_a_gpu_has_another_fingerprint(on_gpu: Imitate) -> None:
    """MIG and MPS leave the name as it is; kernels are chosen by the number of multiprocessors."""
    assert on_gpu() == on_gpu()
    assert on_gpu() != on_gpu(multi_processor_count=16)
    assert on_gpu() != on_gpu(total_memory=18 << 30)


def test_another_cudnn_has_another_fingerprint(on_gpu: Imitate, monkeypatch: pytest.MonkeyPatch) -> None:
    before = on_gpu()
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert on_gpu() != before


def test_the_layout_of_ranks_counts_on_gpus_and_not_on_cpus(on_gpu: Imitate) -> None:
    """NCCL's order of sums depends on the topology, gloo's only on the rank numbers."""
    assert on_gpu(nodes=1, nproc=8) != on_gpu(nodes=2, nproc=4)
    assert environment.fingerprint(CPU, nodes=1, nproc=8) == environment.fingerprint(CPU, nodes=2, nproc=4)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("NCCL_ALGO", True),
        ("NCCL_PROTO", True),
        ("NCCL_A_NEW_ONE", True),
        ("NVIDIA_TF32_OVERRIDE", True),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", True),
        ("NCCL_DEBUG", False),
        ("NCCL_DEBUG_SUBSYS", False),
        ("NCCL_SOCKET_IFNAME", False),
        ("NCCL_IB_TIMEOUT", False),
        ("SLURM_JOB_ID", False),
        ("CUDA_VISIBLE_DEVICES", False),
    ],
)
def test_variables_that_change_sums_count(
    on_gpu: Imitate, monkeypatch: pytest.MonkeyPatch, name: str, counts: bool
) -> None:
    monkeypatch.delenv(name, raising=False)
    before = on_gpu()
    monkeypatch.setenv(name, "1")
    assert (on_gpu() != before) is counts


def test_a_property_that_differs_between_ranks_becomes_a_list_in_rank_order() -> None:
    found = [{"torch": "2.13", "name": "A"}, {"torch": "2.13", "name": "B"}, {"torch": "2.13"}]
    assert environment.merge(found) == {"torch": "2.13", "name": ["A", "B", None]}
    assert environment.merge(found[:1]) == found[0]
