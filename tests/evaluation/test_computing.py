"""A model is evaluated in strict fp32, whatever the switches of torch, on a device that is free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins import witness
from tests.support import trained
from tests.support.trained import Trained
from workflow_lib import config, evaluation, export
from workflow_lib.config import Experiment
from workflow_lib.errors import ConfigError
from workflow_lib.evaluation import computing
from workflow_lib.evaluation.computing import device_of, judged, strict_fp32
from workflow_lib.files import read_json
from workflow_lib.plan import section_digest
from workflow_lib.runtime import device_lease
from workflow_lib.runtime import gpus as driver

EXPERIMENT = """
name: digits-demo
model: {name: tests.plugins.witness}
training: {epochs: 1, precision: bf16, determinism: standard}
checkpoint: {interval_steps: 1000}
sweep: {grid: {model.params.kernel: [deterministic, "not"]}}
evaluate: {bootstrap: 10, device: cpu}
"""
STRICT = {
    "matmul": "highest",
    "cublas": False,
    "cudnn": False,
    "convolutions": "ieee",
    "on the CPU": "ieee",
    "deterministic": True,
    "only warns": False,
    "cudnn deterministic": True,
    "cudnn tries kernels": False,
    "autocast": False,
    "workspace": ":4096:8",
    "override": "0",
}
NEWER = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn", "cudnn", "mkldnn")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trained.EXPERIMENTS, "classification", EXPERIMENT)
        yield trained.train(tmp_path_factory.mktemp("project"))


def older(precision: str, tf32: bool) -> Callable[[], None]:
    def switch() -> None:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32

    return switch


def newer(name: str, value: str) -> Callable[[], None]:
    def switch() -> None:
        place: Any = torch.backends
        for part in filter(None, name.split(".")):
            place = getattr(place, part)
        place.fp32_precision = value

    return switch


SWITCHES: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "older, off": older("highest", False),
    "older, TF32": older("high", True),
    "older, bfloat16": older("medium", True),
    **{f"newer, {name or 'all'}": newer(name, "tf32") for name in ("", "cudnn", "cudnn.conv", "cuda.matmul")},
}


@pytest.fixture
def switched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set switches as a user's model or an earlier evaluation may have left them; restore the defaults afterwards."""
    SWITCHES[request.param]()
    yield
    older("highest", True)()
    for name in ("", *NEWER):
        newer(name, "none")()
    older("highest", True)()


def run(project: Trained, number: int, output: Path) -> dict[str, Any]:
    """The result of the evaluation, in this process."""
    name, experiment = project.runs[number], project.experiment
    model = project.results / "runs" / name / "model.safetensors"
    evaluation.evaluate(experiment, run=name, data=project.data, work=project.work, model=model, output=output)
    result = read_json(output)
    assert isinstance(result, dict)
    return result


def test_predictions_are_made_in_strict_fp32_and_the_result_says_so(project: Trained, tmp_path: Path) -> None:
    witness.SEEN.clear()
    result = run(project, 0, tmp_path / "evaluation.json")
    assert witness.SEEN
    assert all(seen == STRICT for seen in witness.SEEN)
    assert (result["precision"], result["determinism"], result["device"]) == ("fp32", "strict", "cpu")
    assert result["trained_in"] == "bf16"


def test_an_export_is_compared_with_strict_fp32(project: Trained, tmp_path: Path) -> None:
    name = project.runs[0]
    model = project.results / "runs" / name / "model.safetensors"
    run(project, 0, tmp_path / "evaluation.json")
    witness.SEEN.clear()
    export.export(
        project.experiment,
        run=name,
        data=project.data,
        work=project.work,
        model=model,
        evaluation=tmp_path / "evaluation.json",
        output=tmp_path / "export.json",
    )
    compared = [seen for seen in witness.SEEN if seen["deterministic"]]
    assert len(compared) > 3
    assert all(seen == STRICT for seen in compared)
    checked = read_json(tmp_path / "export.json")["check"]
    assert (checked["precision"], checked["determinism"]) == ("fp32", "strict")


def test_an_operation_without_a_deterministic_kernel_is_named_in_log_and_result(
    project: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    witness.SEEN.clear()
    with caplog.at_level(logging.WARNING):
        result = run(project, 1, tmp_path / "evaluation.json")
    assert (result["determinism"], result["not_deterministic"]) == ("standard", "put_")
    assert "put_ has no deterministic kernel here" in caplog.text
    assert witness.SEEN[0] == STRICT
    assert witness.SEEN[-1] == {**STRICT, "only warns": True}  # all other kernels are deterministic


def test_another_error_is_not_taken_for_a_missing_kernel() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        judged(fail)
    assert len(calls) == 1


@pytest.mark.parametrize("switched", SWITCHES, indirect=True)
def test_fp32_is_strict_however_torch_was_told_otherwise_and_is_left_as_it_was(
    switched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> list[Any]:
        places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
        return [*(place.fp32_precision for place in places), torch.get_deterministic_debug_mode()]

    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before, can_be_read = kept(), computing._older_switches()
    with strict_fp32():
        assert witness.switches() == STRICT
    assert kept() == before
    assert computing._older_switches() == can_be_read


def asking(device: str) -> Experiment:
    return Experiment.model_validate({"name": "a", "evaluate": {"device": device}, "runtime": {"device": "cuda"}})


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine outside of SLURM with the given number of GPUs, in place of the driver's answer."""
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setattr(device_lease, "FOLDER", tmp_path)

    def have(count: int, installed: int | None = None) -> None:
        there = [driver.Gpu(f"GPU-{index}") for index in range(installed or count)]
        monkeypatch.setattr(driver, "installed", lambda: there)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: count)

    return have


def taken(folder: Path, device: str) -> AbstractContextManager[Any]:
    """Lease the device as a training does."""
    return device_lease.lease_devices(1, "a training", (f"GPU-{device}",), folder=folder)


def test_auto_takes_the_gpu_that_no_training_uses_and_else_the_cpu(gpus: Any, tmp_path: Path) -> None:
    gpus(2)
    with taken(tmp_path, "0"):
        with device_of("auto") as first:
            assert str(first) == "cuda:1"
            with device_of("auto") as second:  # the first one uses it
                assert str(second) == "cpu"
        with device_of("auto") as third:
            assert str(third) == "cuda:1"


def test_auto_on_a_machine_without_a_gpu_is_the_cpu_whatever_the_training_asks_for(gpus: Any, tmp_path: Path) -> None:
    gpus(0)
    with device_of("auto") as device:
        assert str(device) == "cpu"


def test_a_leased_gpu_is_found_among_the_visible_ones(
    gpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2, installed=8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, 3")
    with taken(tmp_path, "7"), device_of("cuda") as device:
        assert str(device) == "cuda:1"


def test_cuda_waits_until_the_training_gives_its_gpu_back(
    gpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(1)
    with ExitStack() as training, caplog.at_level(logging.INFO):
        training.enter_context(taken(tmp_path, "0"))
        monkeypatch.setattr(device_lease.time, "sleep", lambda _: training.close())
        with device_of("cuda") as device:
            assert str(device) == "cuda:0"
    assert "waiting for a GPU: 0 held by a training" in caplog.text


def test_a_named_gpu_is_shared(gpus: Any, tmp_path: Path) -> None:
    gpus(2)
    with taken(tmp_path, "1"), device_of("cuda:1") as device:
        assert str(device) == "cuda:1"


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_an_error_that_says_what_is(gpus: Any, tmp_path: Path, name: str) -> None:
    gpus(0)
    with pytest.raises(ConfigError, match=rf"evaluate.device: {name} is not on this machine. Here are: auto, cpu$"):
        with device_of(name):
            pass


@pytest.mark.parametrize(("given", "device"), [("0", "cuda:0"), ("", "cpu"), (None, "cpu")])
def test_auto_in_a_job_of_slurm_is_a_gpu_only_if_the_job_has_one(
    gpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, device: str
) -> None:
    """Without device cgroups, a job of the partition `cpu` sees the GPUs of its node."""
    gpus(1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with taken(tmp_path, "0"), device_of("auto") as found:
        assert str(found) == device


def test_another_device_makes_no_evaluation_again() -> None:
    one, other = (section_digest(asking(device), "evaluate") for device in ("cpu", "cuda:1"))
    assert one == other
    changed = Experiment.model_validate({"name": "a", "evaluate": {"seed": 1}})
    assert section_digest(changed, "evaluate") != one


def test_the_device_of_an_evaluation_is_a_setting_that_lists_what_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nevaluate: {device: gpu}\n")
    with pytest.raises(ConfigError, match=r"evaluate.device.*auto, cpu, cuda, or cuda:N"):
        config.load([path])
