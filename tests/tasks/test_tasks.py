"""The facts of each task, and its code, agree."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.repository import ROOT
from workflow_lib import tasks
from workflow_lib.config.metrics import is_lower_better
from workflow_lib.config.run import Training
from workflow_lib.data import Manifest, ModelSpec
from workflow_lib.errors import ConfigError, UserError
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


def described(task: str, **more: object) -> Manifest:
    """Return a manifest with what `predicted` of a task reads."""
    return Manifest.model_construct(task=task, **more)


def test_predicted_classes_have_names_and_the_probabilities_of_the_evaluation() -> None:
    logits = np.array([[2, 0, 1], [0, 0, 5]], np.float32)
    columns = tasks.load("classification").predicted(
        logits, np.empty(0), described("classification", classes=("a", "b", "c"))
    )
    assert list(columns) == ["predicted", "p(a)", "p(b)", "p(c)"]
    assert columns["predicted"] == ["a", "c"]
    header, *rows = csv.reader(classes.predictions_csv(logits, np.zeros(2, int), "abc").splitlines())
    assert [[float(row[header.index(name)]) for row in rows] for name in header[3:]] == [
        list(columns[name]) for name in header[3:]
    ]


def test_predicted_numbers_are_float64_columns_by_target() -> None:
    outputs = np.array([[1.5, 2], [3, 4]], np.float32)
    columns = tasks.load("regression").predicted(outputs, np.empty(0), described("regression"))
    assert {name: list(column) for name, column in columns.items()} == {"predicted_0": [1.5, 3], "predicted_1": [2, 4]}
    assert list(tasks.load("regression").predicted(outputs[:, :1], np.empty(0), described("regression"))) == [
        "predicted"
    ]
    named = tasks.load("regression").predicted(outputs, np.empty(0), described("regression", outputs=("b", "a")))
    assert list(named) == ["predicted(b)", "predicted(a)"]


def test_a_predicted_text_has_its_loss_in_nats() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    logits[1, :, 2] = 50
    columns = tasks.load("language").predicted(logits, np.full((2, 3), 2), described("language"))
    np.testing.assert_allclose(columns["loss"], [np.log(4), 0], atol=1e-6)
    np.testing.assert_allclose(columns["perplexity"], [4, 1], rtol=1e-6)
    assert list(columns["accuracy"]) == [0, 1]
    assert list(columns["tokens"]) == [3, 3]


def test_without_a_function_of_the_task_outputs_are_numbered_and_others_are_refused() -> None:
    manifest = described("mine")
    assert list(tasks.numbered_outputs(np.zeros((2, 2)), np.empty(0), manifest)) == ["output_0", "output_1"]
    with pytest.raises(UserError, match=r"the task mine cannot predict: its outputs have shape \(2, 3\)"):
        tasks.numbered_outputs(np.zeros((2, 2, 3)), np.empty(0), manifest)
