"""GPUs are counted with a script in place of `nvidia-smi`, which prints what the real program prints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workflow_lib.runtime import gpus

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aabb2222-0000-0000-0000-000000000000)
"""
DIVIDED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111cccc-0000-0000-0000-000000000000)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222dddd-0000-0000-0000-000000000000)
"""
FIRST, SECOND = "GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-aabb2222-0000-0000-0000-000000000000"
INSTANCES = ("MIG-1111cccc-0000-0000-0000-000000000000", "MIG-2222dddd-0000-0000-0000-000000000000")

Install = Callable[[str], Path]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install an `nvidia-smi` that prints the given text; the returned file records its calls."""
    calls = tmp_path / "calls"

    def install(says: str, code: int = 0) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "nvidia-smi"
        script.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\ncat <<\'END\'\n{says}END\nexit {code}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return calls

    return install


def seen(value: str | None) -> list[str]:
    return list(gpus.visible({} if value is None else {"CUDA_VISIBLE_DEVICES": value}).values())


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, [FIRST, SECOND]),
        ("", []),
        ("NoDevFiles", []),
        ("-1", []),
        ("void", []),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        (" 0 , 1 ", [FIRST, SECOND]),
        ("0,7,1", [FIRST]),
        ("0,-1,1", [FIRST]),
        ("0,0", []),
        (SECOND, [SECOND]),
        ("GPU-aabb,GPU-aaaa", [SECOND, FIRST]),
        ("GPU-aa", []),
        ("GPU-aaaa,GPU-aaaa1", []),
        ("GPU-ffff", []),
        (f"{FIRST},1", [FIRST]),
        ("0,GPU-aabb", [FIRST]),
        ("MIG-1111cccc", []),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_would_show(
    nvidia_smi: Install, value: str | None, names: list[str]
) -> None:
    nvidia_smi(TWO)
    assert seen(value) == names


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, [INSTANCES[0]]),
        ("0", [INSTANCES[0]]),
        (",".join(INSTANCES), list(INSTANCES)),
        ("MIG-2222", [INSTANCES[1]]),
        ("MIG-1111,MIG-ffff,MIG-2222", [INSTANCES[0]]),
        ("MIG-1111,0", [INSTANCES[0]]),
    ],
)
def test_each_mig_instance_is_a_gpu(nvidia_smi: Install, value: str | None, names: list[str]) -> None:
    nvidia_smi(DIVIDED)
    assert seen(value) == names


def test_entries_are_kept_as_they_were_written(nvidia_smi: Install) -> None:
    nvidia_smi(TWO)
    assert list(gpus.visible({"CUDA_VISIBLE_DEVICES": "GPU-aabb,GPU-aaaa"})) == ["GPU-aabb", "GPU-aaaa"]
    assert list(gpus.visible({})) == ["0", "1"]


def test_a_failing_nvidia_smi_is_treated_as_missing(nvidia_smi: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers may have the program without its library: the device files are counted."""
    nvidia_smi("Failed to initialize NVML: Unknown Error\n", code=18)
    monkeypatch.setattr(gpus, "device_files", list)
    assert gpus.count() == 0
    monkeypatch.setattr(gpus, "device_files", lambda: ["/dev/nvidia0"])
    assert gpus.count() == 1


def test_nvidia_smi_is_not_called_if_every_gpu_is_hidden(nvidia_smi: Install) -> None:
    calls = nvidia_smi(TWO)
    assert seen("") == seen("NoDevFiles") == []
    assert not calls.exists()
    assert seen("1") == [SECOND]
    assert calls.read_text() == "-L\n"


def test_without_nvidia_smi_the_variable_is_trusted_if_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "installed", lambda: [gpus.Gpu(""), gpus.Gpu("")])
    assert seen(None) == ["GPU 0", "GPU 1"]
    assert seen("MIG-x,MIG-y,MIG-z") == ["MIG-x", "MIG-y", "MIG-z"]
    assert seen("1,5") == ["GPU 1"]
    monkeypatch.setattr(gpus, "installed", list)
    assert seen("MIG-x") == seen("0") == seen(None) == []


@pytest.mark.parametrize(
    ("device", "for_cuda", "count"),
    [
        ("cpu", True, 0),
        ("auto", True, 2),
        ("auto", False, 0),
        ("cuda", False, 2),
        ("cuda:1", True, 2),
    ],
)
def test_trainings_count_gpus_if_their_device_can_be_one(
    nvidia_smi: Install, monkeypatch: pytest.MonkeyPatch, device: str, for_cuda: bool, count: int
) -> None:
    calls = nvidia_smi(TWO)
    monkeypatch.setattr(gpus, "torch_is_for_cuda", lambda: for_cuda)
    assert gpus.count_for(device) == count
    assert calls.exists() == (count > 0), "a training on the CPU asked for GPUs"


def test_the_version_file_of_torch_agrees_with_torch() -> None:
    import torch

    assert gpus.torch_is_for_cuda() == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("device", "nproc", "here", "says"),
    [
        ("cpu", 8, 0, None),
        ("auto", 8, 0, None),
        ("auto", 2, 2, None),
        ("cuda", 1, 4, None),
        ("cuda:3", 1, 4, None),
        ("auto", 3, 2, "runtime.nproc: 3 processes need a GPU each, and this machine has cuda:0, cuda:1"),
        ("cuda", 1, 0, "runtime.device: cuda, and this machine has no GPU"),
        ("cuda:4", 1, 4, "runtime.device: cuda:4, and this machine has cuda:0"),
    ],
)
def test_a_setting_that_can_never_run_here_is_named_with_the_gpus_here(
    device: str, nproc: int, here: int, says: str | None
) -> None:
    problem = gpus.problem(device, nproc, here)
    assert (problem is None) if says is None else (problem is not None and problem.startswith(says))


@pytest.mark.parametrize(
    ("device", "nproc", "here", "given", "says"),
    [
        ("cuda", 2, 4, 1, "runtime.nproc: 2 processes need a GPU each, and --resources gpu=1 allows 1"),
        ("auto", 1, 4, 0, "runtime.nproc: 1 processes need a GPU each, and --resources gpu=0 allows 0"),
        ("auto", 2, 0, 1, None),  # on the CPU
        ("cuda", 4, 0, 4, None),  # GPUs that nobody lists
        ("cpu", 4, 4, 1, None),
    ],
)
def test_fewer_gpus_than_a_training_needs_are_an_error(
    device: str, nproc: int, here: int, given: int, says: str | None
) -> None:
    if device == "cpu":
        here = 0  # as `count_for` has it
    problem = gpus.problem(device, nproc, here, given=given)
    assert (problem is None) if says is None else (problem is not None and problem.startswith(says))


def test_gpus_are_counted_without_torch() -> None:
    code = "import sys; from workflow_lib.runtime import gpus; gpus.count_for('auto'); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" not in shown
    assert "'pandas'" not in shown
    assert "'workflow_lib.runtime.gpus'" in shown
