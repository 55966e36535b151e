"""The facts of each task, and its code, agree."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.repository import ROOT
from workflow_lib import tasks
from workflow_lib.config.metrics import is_lower_better
from workflow_lib.config.run import Training
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.metrics import classes, numbers, tokens
from workflow_lib.metrics.bootstrap import Resampling
from workflow_lib.plugins import task_facts, task_names

TASKS = task_names()
ONCE = Resampling(0, 0.95, 0)


@pytest.mark.parametrize("name", TASKS)
def test_settings_of_a_task_are_settings_of_the_training(name: str) -> None:
    assert set(tasks.load(name).settings) <= Training.model_fields.keys()


@pytest.mark.parametrize("name", TASKS)
def test_the_metric_of_a_study_is_one_of_the_curves(name: str) -> None:
    facts = task_facts(name)
    assert facts.study_metric in facts.curves
    assert is_lower_better(facts.curves[-1]) is not facts.larger_is_better


@pytest.mark.parametrize("name", TASKS)
def test_the_chapter_of_a_task_has_a_template(name: str) -> None:
    chapter = tasks.load(name).chapter
    assert chapter is None or (ROOT / f"workflow_lib/report/templates/{chapter.name}.html").exists()


def test_the_metrics_that_are_measured_are_those_of_the_facts() -> None:
    logits, targets = np.eye(3, dtype=np.float32), np.arange(3)
    drawn = np.random.default_rng(0).normal(size=(5, 1))
    sums = tokens.Sums(loss=np.ones(3), correct=np.ones(3, np.int64), tokens=8)
    measured = {
        "classification": classes.measure(logits, targets, "abc", ONCE),
        "regression": numbers.measure(drawn, drawn + 1, ONCE),
        "language": tokens.measure(sums, ONCE),
    }
    for name, result in measured.items():
        assert tuple(result["metrics"]) == tuple(task_facts(name).metrics)


def test_a_model_is_probed_with_two_samples() -> None:
    inputs, shape = tasks.load("regression").probe(ModelSpec((3, 8, 8), 2, "regression"))
    assert (inputs.shape, inputs.dtype, shape) == ((2, 3, 8, 8), torch.float32, (2, 2))
    inputs, shape = tasks.load("language").probe(ModelSpec((64,), 50, "language"))
    assert (inputs.shape, inputs.dtype, shape) == ((2, 8), torch.int64, (2, 8, 50))


def test_an_unknown_task_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"no task `regresion`; did you mean `regression`\? \(there are: classific"):
        tasks.load("regresion")


def test_facts_are_known_without_torch_and_numpy() -> None:
    code = (
        "import sys; from workflow_lib.plugins import all_facts; all_facts();"
        "print([name for name in ('torch', 'numpy', 'onnx') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
