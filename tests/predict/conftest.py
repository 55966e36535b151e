"""Projects whose first run is trained, evaluated and exported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trained import Trained, train
from workflow_lib import evaluation, export


def finished(root: Path, task: str) -> Trained:
    """Return a project whose first run is trained, evaluated and exported."""
    project = train(root, task=task)
    run, folder = project.runs[0], folder_of(project)
    given = {"run": run, "data": project.data, "work": project.work, "model": folder / "model.safetensors"}
    evaluated = folder / "evaluation.json"
    evaluation.evaluate(project.experiment, **given, output=evaluated)
    export.export(project.experiment, **given, evaluation=evaluated, output=folder / "export.json")
    return project


def folder_of(project: Trained) -> Path:
    return project.results / "runs" / project.runs[0]


@pytest.fixture(scope="module", autouse=True)
def _place() -> Iterator[None]:
    """Keep the working directory of the other tests."""
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.fixture(scope="module")
def trained_numbers(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("numbers")
    os.chdir(root)
    return finished(root, "regression")


@pytest.fixture(scope="module")
def trained_images(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("images")
    os.chdir(root)
    return finished(root, "classification")


@pytest.fixture(scope="module")
def trained_text(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("text")
    os.chdir(root)
    return finished(root, "language")


@pytest.fixture
def numbers(trained_numbers: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.chdir(trained_numbers.root)
    return trained_numbers


@pytest.fixture
def images(trained_images: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.chdir(trained_images.root)
    return trained_images


@pytest.fixture
def text(trained_text: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.chdir(trained_text.root)
    return trained_text
