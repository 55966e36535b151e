import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workflow_lib.errors import ConfigError, TryAgain
from workflow_lib.runtime import device


def test_auto_takes_a_gpu_where_there_is_one_and_the_cpu_elsewhere() -> None:
    assert device.resolve("auto", 1, count=lambda: 2) == torch.device("cuda", 1)
    assert device.resolve("auto", 1, count=lambda: 0).type in ("cpu", "mps")


def test_each_local_rank_has_a_gpu_of_its_own() -> None:
    found = [device.resolve("cuda", local_rank, count=lambda: 3) for local_rank in range(3)]
    assert found == [torch.device("cuda", index) for index in range(3)]
    assert device.resolve("cuda:2", count=lambda: 3) == torch.device("cuda", 2)


@pytest.mark.parametrize("local_rank", [0, 5])
def test_the_cpu_is_for_every_rank(local_rank: int) -> None:
    assert device.resolve("cpu", local_rank) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "local_rank", "count", "says"),
    [
        ("cuda", 0, 0, "cuda:0 for local rank 0. Here are: auto, cpu"),
        ("cuda", 2, 2, "cuda:2 for local rank 2. Here are: auto, cpu, cuda:0, cuda:1"),
        ("auto", 1, 1, "cuda:1 for local rank 1"),
        ("cuda:3", 0, 2, "needs cuda:3"),
        ("cuda:0", 1, 2, "is for one process"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_not_a_fallback(
    name: str, local_rank: int, count: int, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        device.resolve(name, local_rank, count=lambda: count)
    assert says in str(error.value) and str(error.value).startswith("runtime.")


def test_mps_is_refused_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="Here are: auto, cpu"):
        device.resolve("mps", count=lambda: 0)


@pytest.mark.parametrize(
    ("kind", "precision", "capability"),
    [
        ("cpu", "fp32", None),
        ("cpu", "bf16", None),
        ("cpu", "fp16", None),
        ("cuda", "fp32", (3, 0)),
        ("cuda", "fp16", (7, 0)),
        ("cuda", "bf16", (8, 0)),
        ("cuda", "tf32", (9, 0)),
        ("cuda", "bf16", None),
    ],
)
def test_a_precision_that_the_device_has_is_accepted(
    kind: str, precision: str, capability: tuple[int, int] | None
) -> None:
    device.check_precision(torch.device(kind), precision, capability=lambda _: capability)


@pytest.mark.parametrize(
    ("kind", "precision", "capability", "use"),
    [
        ("cpu", "tf32", None, "Use fp32"),
        ("cuda", "bf16", (7, 5), "Use fp16 or fp32"),
        ("cuda", "tf32", (7, 0), "Use fp16 or fp32"),
        ("cuda", "fp16", (5, 2), "Use fp32"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused_with_those_it_has(
    kind: str, precision: str, capability: tuple[int, int] | None, use: str
) -> None:
    with pytest.raises(ConfigError, match=f"training.precision: .*{precision}.*{use}"):
        device.check_precision(torch.device(kind), precision, capability=lambda _: capability)


def test_fp16_on_the_cpu_is_refused_where_torch_cannot_autocast_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_can_autocast", lambda *_: False)
    with pytest.raises(ConfigError, match="fp16"):
        device.check_precision(torch.device("cpu"), "fp16")


def test_autocast_support_is_told_from_its_warning() -> None:
    assert device._can_autocast(torch.device("cpu"), torch.bfloat16)
    assert not device._can_autocast(torch.device("cpu"), torch.float64)


def test_two_jobs_never_share_a_device(tmp_path: Path) -> None:
    ids = ("0", "1", "2")
    with device.lease_devices(1, tmp_path, ids) as first, device.lease_devices(2, tmp_path, ids) as second:
        assert sorted(first + second) == ["0", "1", "2"]
        with pytest.raises(TryAgain, match="only 0 are free"), device.lease_devices(1, tmp_path, ids):
            pass
    with device.lease_devices(3, tmp_path, ids) as all_of_them:
        assert all_of_them == ids


def test_a_job_that_cannot_have_all_takes_none(tmp_path: Path) -> None:
    with device.lease_devices(1, tmp_path, ("0", "1")):
        with pytest.raises(TryAgain), device.lease_devices(2, tmp_path, ("0", "1")):
            pass
        with device.lease_devices(1, tmp_path, ("0", "1")) as other:
            assert other == ("1",)


def test_devices_are_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), device.lease_devices(1, tmp_path, ("0",)):
        1 / 0  # noqa: B018
    with device.lease_devices(1, tmp_path, ("0",)) as again:
        assert again == ("0",)


HOLDER = """
import os, sys, time
from pathlib import Path
from workflow_lib.runtime.device import lease_devices
with lease_devices(1, Path(sys.argv[1]), ("0", "1")):
    rank = os.fork()
    if rank:
        print(rank, flush=True)
    time.sleep(600)
"""


def test_a_device_is_free_when_its_job_was_killed_and_not_before_its_last_rank_is_gone(tmp_path: Path) -> None:
    job = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    rank = int(job.stdout.readline())
    try:
        with device.lease_devices(1, tmp_path, ("0", "1")) as other:
            assert other == ("1",)
        job.kill()
        job.wait()
        with pytest.raises(TryAgain), device.lease_devices(2, tmp_path, ("0", "1")):
            pass
    finally:
        os.kill(rank, signal.SIGKILL)
        job.kill()
        job.wait()
        job.stdout.close()
    with device.lease_devices(2, tmp_path, ("0", "1"), wait_s=300) as both:
        assert both == ("0", "1")


def test_a_job_waits_for_a_device_as_long_as_it_is_told(tmp_path: Path) -> None:
    with device.lease_devices(1, tmp_path, ("0",)):
        began = time.monotonic()
        with pytest.raises(TryAgain), device.lease_devices(1, tmp_path, ("0",), wait_s=0.2):
            pass
        assert time.monotonic() - began >= 0.2


def test_a_schedulers_devices_are_taken_as_they_are(tmp_path: Path) -> None:
    environ = {"SLURM_JOB_ID": "5", "CUDA_VISIBLE_DEVICES": "3,GPU-8f2"}
    with device.lease_devices(2, tmp_path, environ=environ) as first:
        with device.lease_devices(1, tmp_path, environ=environ) as second:
            assert (first, second) == (("3", "GPU-8f2"), ("3",))
    assert not (tmp_path / "devices").exists()


def test_devices_that_a_person_made_visible_are_shared_out(tmp_path: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,6"}
    with device.lease_devices(1, tmp_path, environ=environ) as first:
        with device.lease_devices(1, tmp_path, environ=environ) as second:
            assert (first, second) == (("4",), ("6",))


def test_more_devices_than_there_are_is_the_persons_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 GPUs are needed; there are 0"):
        with device.lease_devices(2, tmp_path, ("0",)):
            pass
