"""A launcher knows before it forks if CUDA was started in it, and by which module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import driver
from workflow_lib.errors import RankError
from workflow_lib.runtime import device, forking, torch_internals


def run(program: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(driver.build(folder))], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_driver_knows_if_it_was_started(tmp_path: Path) -> None:
    """Loading the driver's library, as torch does, does not start it."""
    program = """
import ctypes, sys
from workflow_lib.runtime import forking
print(forking.has_started_cuda())
driver = ctypes.CDLL(sys.argv[1])
print(forking.has_started_cuda())
driver.cuInit(0)
print(forking.has_started_cuda())
"""
    assert run(program, tmp_path) == ["False", "False", "True"]


def test_the_module_that_starts_cuda_is_named_and_no_other(tmp_path: Path) -> None:
    program = """
import ctypes, sys
from workflow_lib.runtime import forking
from workflow_lib.errors import ConfigError
with forking.importing("mine.harmless"):
    pass
with forking.importing("mine.nets"):
    ctypes.CDLL(sys.argv[1]).cuInit(0)
with forking.importing("mine.later"):
    pass
try:
    forking.check_cuda_not_started()
except ConfigError as error:
    print(error)
"""
    (line,) = run(program, tmp_path)
    assert line.startswith("mine.nets: importing this module starts CUDA")
    assert "in build()" in line
    assert "harmless" not in line
    assert "later" not in line


def test_cuda_started_by_an_unknown_module_is_rejected_too(tmp_path: Path) -> None:
    program = """
import ctypes, sys
from workflow_lib.runtime import forking
from workflow_lib.errors import ConfigError
forking.check_cuda_not_started()
ctypes.CDLL(sys.argv[1]).cuInit(0)
try:
    forking.check_cuda_not_started()
except ConfigError as error:
    print(error)
"""
    assert run(program, tmp_path)[0].startswith("something started CUDA in this process")


def test_torch_counts_gpus_without_cuda_until_a_rank_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a MIG device, which NVML does not count."""
    asked: list[str] = []

    def count_by_cuda() -> int:
        asked.append("cuda")
        return 7

    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: -1)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", count_by_cuda, raising=False)
    monkeypatch.delenv(forking.NVML, raising=False)
    forking.count_without_cuda(lambda: 2)
    forking.count_without_cuda(lambda: 3)  # once is enough
    assert (torch.cuda.device_count(), torch.cuda.is_available(), asked) == (2, True, [])
    torch_internals.restore_gpu_count()
    assert (torch.cuda.device_count(), asked) == (7, ["cuda"])
    torch_internals.restore_gpu_count()


def test_gpus_unknown_to_nvml_are_counted_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subprocess's answer is used; without a driver no subprocess is started."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\necho some warning\necho 2\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: -1)
    monkeypatch.setenv(device.VISIBLE, "MIG-89c850dc-38e3-57df-85c7-690c186b68e9")
    monkeypatch.setattr(device, "has_driver", lambda: True)
    assert (device.visible_cuda(), device.visible_cuda()) == (2, 2)
    assert (tmp_path / "asked").read_text() == "asked\n"
    monkeypatch.setenv(device.VISIBLE, "MIG-another")
    monkeypatch.setattr(device, "has_driver", lambda: False)
    assert device.visible_cuda() == 0
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(
    "said",
    [
        "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, use the 'spawn' method",
        "CUDA error: initialization error\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_a_rank_forked_too_late_gives_the_reason_in_one_line(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def refuse(to: torch.device) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    monkeypatch.setattr(forking, "starters", ["mine.nets"])
    with pytest.raises(RankError, match=r"forked from one that had started CUDA.*mine\.nets") as error:
        device.bind(torch.device("cuda", 0))
    assert "\n" not in str(error.value)


def test_any_other_error_of_a_gpu_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(to: torch.device) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        device.bind(torch.device("cuda", 0))
