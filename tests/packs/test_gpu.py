"""The memory of a GPU that runs of a pack share is measured, and never given to more runs than it holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu_leases import Waits, lease
from workflow_lib import config, plan
from workflow_lib.errors import RankError
from workflow_lib.files import write_json
from workflow_lib.packs import gpu
from workflow_lib.packs.forks import Task
from workflow_lib.runtime import device_lease, gpus

GIB = 1 << 30
NVIDIA_SMI = """\
#!/bin/sh
case "$*" in
-L) echo "GPU 0: A (UUID: GPU-a)"; echo "GPU 1: B (UUID: GPU-b)" ;;
*"-i GPU-a "*memory.free*) echo 5 ;;
*"-i GPU-b "*memory.free*) echo 7 ;;
*) exit 1 ;;
esac
"""


def task(name: str, kind: str = "small", *, is_alone: bool = False) -> Task:
    return Task(name, lambda: None, Path(), kind=kind, is_alone=is_alone)


def measured(folder: Path, name: str, reserved: float, free: float) -> None:
    write_json(folder / f"{name}.json", {"reserved": int(reserved * GIB), "free": int(free * GIB)})


def test_the_first_run_is_alone_until_it_is_measured(tmp_path: Path) -> None:
    memory = gpu.Memory(tmp_path, 10 * GIB)
    first, second = task("first"), task("second")
    assert memory.allows(first, [])
    assert not memory.allows(second, [first])
    measured(tmp_path, "first", reserved=2, free=7.5)  # the other half GiB is its context
    assert memory.allows(second, [first])
    assert memory.allows(task("third"), [first, second])
    assert not memory.allows(task("fourth"), [first, second, task("third")])  # 10 of 9 GiB
    assert memory.allows(task("evaluation", kind=""), [first, second, task("third")])


def test_runs_of_an_unknown_kind_are_measured_one_after_the_other(tmp_path: Path) -> None:
    memory = gpu.Memory(tmp_path, 20 * GIB)
    first, large, other = task("first"), task("large", "large"), task("other", "other")
    measured(tmp_path, "first", reserved=2, free=17.5)
    assert memory.allows(large, [first])
    assert not memory.allows(other, [first, large])
    assert memory.allows(task("second"), [first, large])  # of a kind that is known
    measured(tmp_path, "large", reserved=11.5, free=5)
    assert memory.allows(task("second"), [first, large])
    assert not memory.allows(other, [first, large])  # it may need as much as the largest
    measured(tmp_path, "first", reserved=6, free=5)  # its validation needs more
    assert not memory.allows(task("second"), [first, large])


def test_a_run_that_is_tried_again_is_alone(tmp_path: Path) -> None:
    memory = gpu.Memory(tmp_path, 10 * GIB)
    first, again = task("first"), task("again", is_alone=True)
    measured(tmp_path, "first", reserved=1, free=8)
    assert not memory.allows(again, [first])
    assert memory.allows(again, [task("evaluation", kind="")])
    assert not memory.allows(first, [again])


def test_without_nvidia_smi_a_context_is_assumed(tmp_path: Path) -> None:
    memory = gpu.Memory(tmp_path, None)
    first = task("first")
    measured(tmp_path, "first", reserved=1, free=8)
    assert memory.allows(task("fourth"), [first, task("second"), task("third")])  # 8 of 9 GiB
    assert not memory.allows(task("fifth"), [first, task("second"), task("third"), task("fourth")])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("rank 0: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("rank 0: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("rank 0 was killed by SIGKILL (out of memory?)", False),
        ("the training diverged", False),
    ],
)
def test_a_lack_of_the_gpus_memory_is_told_from_other_failures(message: str, expected: bool) -> None:
    assert gpu.is_out_of_memory(RankError(message)) is expected


def test_runs_of_one_kind_differ_in_nothing_that_needs_memory() -> None:
    def kind(**changes: Any) -> str:
        return gpu.kind_of(plan.base(config.Experiment.model_validate({"name": "x", **changes})), "data")

    same = kind(seed=1, optimizer={"name": "adamw", "lr": 0.5}, training={"label_smoothing": 0.1, "epochs": 3})
    assert same == kind()
    assert kind(training={"batch_size": 7}) != same
    assert kind(model={"params": {"hidden": [7]}}) != same
    assert kind(optimizer={"name": "sgd"}) != same


def test_a_pack_leases_one_gpu_and_reads_its_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(gpus.VISIBLE, "1,0")
    monkeypatch.setattr(gpus, "torch_is_for_cuda", lambda: True)
    monkeypatch.setattr(device_lease, "FOLDER", tmp_path / "leases")
    experiment = config.Experiment.model_validate({"name": "x"})
    with gpu.share(experiment, tmp_path / "memory", must_stop=bool) as (shared, memory):
        assert shared.runtime.device == "cuda:0"
        assert os.environ[gpus.VISIBLE] == "1"
        assert memory is not None
        assert memory._free == 7 << 20
        with pytest.raises(Waits, match="held by a pack of x"), lease(tmp_path / "leases", 1, ("GPU-b",)):
            pass
    monkeypatch.setenv(gpus.VISIBLE, "1,0")
    named = experiment.model_copy(update={"runtime": experiment.runtime.model_copy(update={"device": "cuda:1"})})
    with gpu.share(named, tmp_path / "memory", must_stop=bool) as (shared, memory):
        assert shared.runtime.device == "cuda:1"
        assert memory is not None
        assert memory._free == 5 << 20
    cpu = experiment.model_copy(update={"runtime": experiment.runtime.model_copy(update={"device": "cpu"})})
    with gpu.share(cpu, tmp_path / "memory", must_stop=bool) as unchanged:
        assert unchanged == (cpu, None)
