import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workflow_lib.errors import ConfigError, RankError
from workflow_lib.runtime import device


def test_auto_is_a_gpu_if_there_is_one_else_the_cpu() -> None:
    assert device.resolve("auto", 1, count=lambda: 2) == torch.device("cuda", 1)
    assert device.resolve("auto", 1, count=lambda: 0) == torch.device("cpu")


def test_each_local_rank_has_its_own_gpu() -> None:
    found = [device.resolve("cuda", local_rank, count=lambda: 3) for local_rank in range(3)]
    assert found == [torch.device("cuda", index) for index in range(3)]
    assert device.resolve("cuda:2", count=lambda: 3) == torch.device("cuda", 2)


@pytest.mark.parametrize("local_rank", [0, 5])
def test_the_cpu_is_for_every_rank(local_rank: int) -> None:
    assert device.resolve("cpu", local_rank) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "local_rank", "count", "says"),
    [
        ("cuda", 0, 0, "cuda:0 for local rank 0. This machine has: auto, cpu"),
        ("cuda", 2, 2, "cuda:2 for local rank 2. This machine has: auto, cpu, cuda:0, cuda:1"),
        ("auto", 1, 1, "cuda:1 for local rank 1"),
        ("cuda:3", 0, 2, "needs cuda:3"),
        ("cuda:0", 1, 2, "is for one process"),
    ],
)
def test_a_missing_device_is_an_error_not_a_fallback(name: str, local_rank: int, count: int, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        device.resolve(name, local_rank, count=lambda: count)
    assert says in str(error.value)
    assert str(error.value).startswith("runtime.")


def test_a_job_whose_node_has_no_gpu_may_be_tried_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RankError, match="needs cuda:0 for local rank 0") as error:
        device.resolve("cuda", count=lambda: 0)
    assert error.value.exit_code != ConfigError.exit_code


def test_auto_on_a_mac_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.resolve("auto", count=lambda: 0) == torch.device("cpu")
    with pytest.raises(ConfigError, match="This machine has: auto, cpu$"):
        device.resolve("cuda", count=lambda: 0)


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
def test_a_precision_that_the_device_lacks_is_rejected_with_those_it_has(
    kind: str, precision: str, capability: tuple[int, int] | None, use: str
) -> None:
    with pytest.raises(ConfigError, match=f"training.precision: .*{precision}.*{use}"):
        device.check_precision(torch.device(kind), precision, capability=lambda _: capability)


OLD, NEW, ODD = "7.5, Tesla T4", "9.0, NVIDIA H100, 80GB HBM3", "[N/A], Quadro"
ROWS = [f"{number}, GPU-{number}aaa-11, 550.54, {size}, {end}" for number, (size, end) in enumerate(
    [("15360 MiB", OLD), ("81559 MiB", NEW), ("[N/A]", ODD), ("81559 MiB", NEW)]
)]  # fmt: skip


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine whose `nvidia-smi`, which this machine does not have, prints the given rows."""
    for name in (device.VISIBLE, "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)

    def have(*rows: str, visible: str | None = None, order: str = "PCI_BUS_ID") -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\ncat <<'END'\n" + "".join(f"{row}\n" for row in rows) + "END\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
        if visible is not None:
            monkeypatch.setenv(device.VISIBLE, visible)

    return have


def test_the_capability_is_that_of_the_chosen_gpu(smi: Callable[..., None]) -> None:
    smi(*ROWS)
    found = [device.cuda_capability(torch.device("cuda", index)) for index in range(5)]
    assert found == [(7, 5), (9, 0), None, (9, 0), None]
    device.check_precision(torch.device("cuda", 1), "bf16")  # whatever else is in the machine
    with pytest.raises(ConfigError, match=r"bf16 needs .* 8.0; cuda:0 has 7.5. Use fp16 or fp32"):
        device.check_precision(torch.device("cuda", 0), "bf16")


@pytest.mark.parametrize(
    ("visible", "capabilities"),
    [
        ("1,0", [(9, 0), (7, 5), None]),
        ("GPU-1aaa, 0", [(9, 0), (7, 5), None]),
        ("MIG-GPU-1aaa-11/1/0,MIG-8f2,0", [(9, 0), None, (7, 5)]),
        ("", [None]),
        ("-1", [None]),
    ],
)
def test_a_gpu_is_numbered_as_it_is_made_visible(
    smi: Callable[..., None], visible: str, capabilities: list[tuple[int, int] | None]
) -> None:
    smi(*ROWS, visible=visible)
    found = [device.cuda_capability(torch.device("cuda", index)) for index in range(len(capabilities))]
    assert found == capabilities


def test_before_a_gpu_is_leased_the_best_one_decides(smi: Callable[..., None]) -> None:
    smi(*ROWS[:2])
    assert device.cuda_capability(torch.device("cuda")) == (9, 0)
    smi(*ROWS[:1])
    with pytest.raises(ConfigError, match=r"8.0; the best has 7.5"):
        device.check_precision(torch.device("cuda"), "bf16")
    smi(ROWS[0], ROWS[2])
    device.check_precision(torch.device("cuda"), "bf16")  # the GPU of unknown capability may support it


def test_an_ambiguous_gpu_number_is_not_rejected(smi: Callable[..., None]) -> None:
    """CUDA can be set to number the fastest GPU first; nvidia-smi never does."""
    smi(*ROWS[:2], order="FASTEST_FIRST")
    assert device.cuda_capability(torch.device("cuda", 0)) == (9, 0)


def test_the_description_of_a_gpu_is_that_of_nvidia_smi(smi: Callable[..., None]) -> None:
    smi(*ROWS[1:3], "No devices were found")
    first, second = device.query_gpus()
    assert (first["name"], first["memory.total"]) == ("NVIDIA H100, 80GB HBM3", "81559 MiB")
    assert (second["name"], second["memory.total"], second["compute_cap"]) == ("Quadro", "[N/A]", "[N/A]")


@pytest.mark.parametrize(("given", "found"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_cuda_numbers_gpus_as_nvidia_smi_does_unless_the_variable_is_set(given: str | None, found: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_ORDER"}
    environ |= {} if given is None else {"CUDA_DEVICE_ORDER": given}
    program = "import sys, os, workflow_lib; print(os.environ['CUDA_DEVICE_ORDER'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False"]


def test_fp16_on_the_cpu_is_rejected_if_torch_cannot_autocast_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_can_autocast", lambda *_: False)
    with pytest.raises(ConfigError, match="fp16"):
        device.check_precision(torch.device("cpu"), "fp16")


def test_autocast_support_is_known_from_its_warning() -> None:
    assert device._can_autocast(torch.device("cpu"), torch.bfloat16)
    assert not device._can_autocast(torch.device("cpu"), torch.float64)
