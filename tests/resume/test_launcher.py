"""A launcher never starts CUDA: every call that would start it fails, while the ranks seem to have GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import driver
from tests.support.forbidden import TOUCHED
from tests.support.project import NAME, SETTINGS, Project, merged, prepare
from tests.support.warm import Order, Warm
from workflow_lib.store.events import read_events

ASKING = """
import torch
from workflow_lib.plugins import Section

HAS_GPU, GPUS = torch.cuda.is_available(), torch.cuda.device_count()
{more}

class Params(Section):
    pass

def build(params, spec):
    assert HAS_GPU and GPUS == 4
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, spec.outputs))
"""
STUDY = {"tune": {"trials": 1, "space": {"optimizer.lr": {"low": 0.001, "high": 0.01}}, "set": {"training.epochs": 1}}}
SHORT: dict[str, Any] = {"training": {"epochs": 1}}


def of_user(tmp_path: Path, warm: Warm, more: str = "", changes: dict[str, Any] | None = None) -> Project:
    """Prepare a project whose model asks for GPUs when it is imported."""
    model = {"model": {"name": "mine.nets"}}
    settings = merged(merged(merged(SETTINGS, SHORT), model), changes or {})
    files = {"mine/__init__.py": "", "mine/nets.py": ASKING.format(more=more)}
    return prepare(tmp_path / "project", warm, settings, files)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("plant", ["with_nvml", "without_nvml"])
def test_a_training_whose_model_asks_for_gpus_starts_no_cuda_in_its_launcher(
    tmp_path: Path, warm: Warm, plant: str, ranks: int
) -> None:
    run = of_user(tmp_path, warm, changes={"runtime": {"nproc": ranks}})
    assert run.attempt(plant=f"tests.support.forbidden:{plant}") == 0, run.log
    assert not (run.folder / TOUCHED).exists()
    assert run.findings == []
    events = {event["kind"]: event for event in read_events(run.workspace / "events.jsonl")}
    assert events["environment"]["device"] == "cuda:0"  # so the launcher believed in the GPUs
    assert "torch_build" in events["accelerator"]
    assert "torch_build" not in events["environment"]


def test_a_trial_starts_no_cuda_in_its_launcher(tmp_path: Path, warm: Warm) -> None:
    run = of_user(tmp_path, warm, changes=STUDY)
    tune, log = f"results/{NAME}/tune/study", str(run.folder / "log.txt")
    suggestion, common = f"{tune}/suggest-0000.json", ["--experiment", "experiment.yaml"]
    suggest = ["suggest", *common, "--number", "0", "--tune-dir", tune, "--output", suggestion]
    assert warm.run(Order(suggest, str(run.folder), log)) == 0, run.log
    trial = ["trial", *common, "--suggestion", suggestion, "--data", run.data, "--output", f"{tune}/trial-0000.json"]
    plant = "tests.support.forbidden:without_nvml"
    assert warm.run(Order(trial, str(run.folder), log, plant=plant)) == 0, run.log
    assert not (run.folder / TOUCHED).exists()


def test_prove_resume_starts_no_cuda_in_any_launcher(tmp_path: Path, warm: Warm) -> None:
    run = of_user(tmp_path, warm)
    command, plant = ["prove-resume", "experiment.yaml", "--kills", "1"], "tests.support.forbidden:with_nvml"
    assert warm.run(Order(command, str(run.folder), str(run.folder / "log.txt"), plant=plant)) == 0, run.log
    assert not (run.folder / TOUCHED).exists()


def test_a_model_that_starts_cuda_when_it_is_imported_is_named_before_ranks_are_forked(
    tmp_path: Path, warm: Warm
) -> None:
    library = driver.build(tmp_path)
    run = of_user(tmp_path, warm, more=f"import ctypes; ctypes.CDLL({str(library)!r}).cuInit(0)")
    assert run.attempt(plant="tests.support.forbidden:with_nvml") == 2
    last = run.log.splitlines()[-1]
    assert last.startswith("everstep train: mine.nets: importing this module starts CUDA")
    assert not list(run.workspace.glob("attempts/*.json"))


def test_prove_resume_names_such_a_model_before_it_trains(tmp_path: Path, warm: Warm) -> None:
    library = driver.build(tmp_path)
    run = of_user(tmp_path, warm, more=f"import ctypes; ctypes.CDLL({str(library)!r}).cuInit(0)")
    command, log = ["prove-resume", "experiment.yaml", "--kills", "1"], run.folder / "proof.txt"
    plant = "tests.support.forbidden:with_nvml"
    assert warm.run(Order(command, str(run.folder), str(log), plant=plant)) == 2, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("everstep prove-resume: mine.nets: importing this module starts CUDA")
    assert not (run.folder / "work" / "prove").exists()
