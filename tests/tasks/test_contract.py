"""The shipped tasks obey the contract of tasks, with settings that change the loss."""

from __future__ import annotations

from tests.tasks.contract import TaskContract
from workflow_lib.plugins import task_names


class TestClassification(TaskContract):
    task = "classification"
    training = {"label_smoothing": 0.1, "focal_gamma": 1.0, "class_weights": "balanced"}


class TestRegression(TaskContract):
    task = "regression"
    outputs = 1


class TestSeveralNumbers(TaskContract):
    task = "regression"


class TestLanguage(TaskContract):
    task = "language"
    training = {"label_smoothing": 0.1}


class TestTextClassification(TaskContract):
    task = "text_classification"
    inputs = "texts"


class TestMultilabel(TaskContract):
    task = "multilabel"
    training = {"label_smoothing": 0.1, "focal_gamma": 1.0}


class TestSegmentation(TaskContract):
    task = "segmentation"
    training = {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 3.0]}


def test_every_shipped_task_is_here() -> None:
    assert {test.task for test in TaskContract.__subclasses__()} >= set(task_names())
