"""The runs of a pack, in the order in which they are trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.prepared import given, preparing
from workflow_lib import config, plan
from workflow_lib.packs.job import Job
from workflow_lib.packs.runs import Runs
from workflow_lib.results import layout as results_layout


def test_the_longest_trainings_of_a_pack_start_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot be read does not stop the others: its own training says what is wrong."""
    numbers = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    manifest = preparing(tmp_path, monkeypatch)(given(numbers, np.arange(100) % 2, classes=("a", "b")))
    manifest.save(results_layout.data_manifest(tmp_path, "data"))
    points = [
        {"training.epochs": 2},
        {"training.epochs": 9},
        {"training.epochs": 4, "training.batch_size": 5},
        {"training.epochs": 9, "training.max_steps": 3},
        {"training.epochs": 9, "seed": 1},
    ]
    training = {"batch_size": 10}
    experiment = config.Experiment.model_validate({"name": "x", "training": training, "sweep": {"list": points}})
    runs = plan.expand(experiment)
    for run in runs:
        plan.freeze(run.config, tmp_path)
    ids = [*(run.id for run in runs), "x-0123456789ab"]
    job = Job(experiment, tmp_path, tmp_path, None, tmp_path, tmp_path)
    pack = plan.Pack(tuple((run, "data") for run in ids))
    names = [task.name for task in Runs(job, pack, tmp_path, lambda: None).tasks()]
    assert [ids.index(name) for name in names] == [1, 4, 2, 0, 3, 5]
