"""The laws of a task. A new one, also one outside this repository, inherits them:

from tests.tasks.contract import TaskContract

class TestMine(TaskContract):
    task = "mypackage.mine:TASK"

Samples and a small model are made up for the kind of its targets; a task of texts with a class says `inputs = "texts"`.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.prepared import given, preparing
from workflow_lib import data, tasks
from workflow_lib.config.experiment import Evaluate
from workflow_lib.config.run import Training
from workflow_lib.data import Manifest, ModelSpec, Source
from workflow_lib.report.page import TEMPLATES
from workflow_lib.tasks import Objective, Task

SAMPLES, CONTEXT, VOCABULARY = 120, 6, 9
CPU = torch.device("cpu")


class OfTokens(nn.Module):
    """An answer for each token, or for the mean of the tokens of a text."""

    def __init__(self, spec: ModelSpec, *, is_mean: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(spec.vocabulary, 4), nn.Linear(4, spec.outputs)
        self.is_mean = is_mean

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.embedding(tokens)
        outputs: Tensor = self.head(found.mean(1) if self.is_mean else found)
        return outputs


def source_of(kind: str, task: str, inputs: str, outputs: int) -> Source:
    """Return made-up samples with targets of this kind, from which a model can learn something."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(SAMPLES, 5)).astype(np.float32)
    classes = tuple(f"class {number}" for number in range(outputs))
    if kind == "tokens":
        tokens = random.integers(0, VOCABULARY, (SAMPLES, CONTEXT + 1)).astype(np.uint8)
        return given(tokens, np.empty((SAMPLES, 0), np.int64), task=task, vocabulary=tuple("abcdefghi"))
    if kind == "numbers":
        targets = (numbers[:, :outputs] * 7 + 50).astype(np.float32)
        return given(numbers, targets, task=task, outputs=tuple(f"number {number}" for number in range(outputs)))
    if kind == "masks":
        images = random.integers(0, 200, (SAMPLES, 1, 8, 8)).astype(np.uint8)
        masks = (images[:, 0].astype(int) * outputs // 200).astype(np.uint8)
        masks[:, 0, 0] = data.IGNORED
        none = np.empty((SAMPLES, 0), np.int64)
        return given(images, none, task=task, classes=classes, read_targets=lambda split, rows: masks[rows])
    if kind == "labels":
        return given(numbers, (numbers[:, :outputs] > 0).astype(np.uint8), task=task, classes=classes)
    numbered = np.arange(SAMPLES) % outputs
    if inputs == "texts":
        tokens = (1 + (numbered[:, None] + random.integers(0, 5, (SAMPLES, CONTEXT))) % 8).astype(np.uint8)
        return given(tokens, numbered, task=task, classes=classes, vocabulary=("", *"abcdefgh"))
    numbers[:, 0] += numbered
    return given(numbers, numbered, task=task, classes=classes)


class TaskContract:
    """Every test here must hold for the `task`: its name, or its import path."""

    task: ClassVar[str]
    inputs: ClassVar[Literal["numbers", "texts"]] = "numbers"
    outputs: ClassVar[int] = 3
    training: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def loaded(self) -> Task:
        return tasks.load(self.task)

    @pytest.fixture
    def manifest(self, loaded: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
        source = source_of(loaded.targets, self.task, self.inputs, self.outputs)
        return preparing(tmp_path, monkeypatch)(source, shard_samples=SAMPLES)

    @pytest.fixture
    def split(self, manifest: Manifest, tmp_path: Path) -> Any:
        return data.load_split(manifest, "train", tmp_path / "work")

    @pytest.fixture
    def network(self, loaded: Task, manifest: Manifest) -> nn.Module:
        torch.manual_seed(0)
        spec = manifest.spec
        if loaded.targets == "tokens" or self.inputs == "texts":
            return OfTokens(spec, is_mean=loaded.targets != "tokens")
        if loaded.targets == "masks":
            return nn.Conv2d(spec.input_shape[0], spec.outputs, 3, padding=1)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(spec.input_shape), spec.outputs))

    @pytest.fixture
    def objective(self, loaded: Task, manifest: Manifest) -> Objective:
        training = Training.model_validate(self.training)
        found = loaded.objective(training, CPU, manifest.splits["train"].per_class, manifest.target_std)
        found.targets = manifest.outputs
        return found

    @pytest.fixture
    def pair(self, objective: Objective, network: nn.Module, split: Any) -> tuple[Tensor, Tensor]:
        """Return outputs and targets of a batch of 24 samples."""
        inputs, targets = objective.parts(*split.batch(slice(0, 24)))
        return network(inputs), targets

    def evaluated(self, manifest: Manifest, network: nn.Module, split: Any, size: int) -> tuple[dict[str, Any], str]:
        settings = Evaluate.model_validate({"batch_size": size, "bootstrap": 20})
        with torch.random.fork_rng():
            return tasks.load(self.task).evaluate(network, manifest, split, settings, CPU)

    def test_the_loss_is_the_mean_of_those_of_the_samples_and_has_a_gradient(
        self, objective: Objective, network: nn.Module, pair: tuple[Tensor, Tensor]
    ) -> None:
        losses = objective.losses(*pair)
        assert losses.shape == (24,)
        torch.testing.assert_close(objective.loss(*pair), losses.mean())
        objective.loss(*pair).backward()
        gradients = [weight.grad for weight in network.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert any(gradient is not None and gradient.any() for gradient in gradients)

    def test_metrics_of_a_validation_do_not_depend_on_its_batches(
        self, loaded: Task, objective: Objective, pair: tuple[Tensor, Tensor]
    ) -> None:
        whole = objective.measure(*pair)
        assert (whole.dtype, whole.shape) == (torch.float64, (len(objective.sums),))
        parts = [objective.measure(*(part[rows] for part in pair)) for rows in (slice(0, 1), slice(1, 9), slice(9, 24))]
        found, of_parts = (
            objective.metrics(dict(zip(objective.sums, sums.tolist(), strict=True)))
            for sums in (whole, torch.stack(parts).sum(0))
        )
        assert ("train_loss", *found)[: len(loaded.curves)] == loaded.curves
        assert all(map(math.isfinite, found.values()))
        assert of_parts == pytest.approx(found)

    def test_the_sums_of_a_validation_do_not_wait_for_the_device(
        self, loaded: Task, manifest: Manifest, pair: tuple[Tensor, Tensor]
    ) -> None:
        """Meta tensors have no values to wait for."""
        meta = torch.device("meta")
        training = Training.model_validate(self.training)
        objective = loaded.objective(training, meta, manifest.splits["train"].per_class, manifest.target_std)
        assert objective.measure(*(part.to(meta) for part in pair)).device == meta

    def test_a_model_is_probed_with_inputs_and_outputs_of_its_shapes(
        self, loaded: Task, manifest: Manifest, network: nn.Module
    ) -> None:
        inputs, shape = loaded.probe(manifest.spec)
        assert network(inputs).shape == shape

    def test_an_evaluation_has_the_metrics_of_the_task_whatever_its_batches_are(
        self, loaded: Task, manifest: Manifest, network: nn.Module, split: Any
    ) -> None:
        measured, text = self.evaluated(manifest, network, split, 16)
        other, same = self.evaluated(manifest, network, split, 50)
        assert measured["metrics"].keys() == loaded.metrics.keys()
        json.dumps(measured, allow_nan=False)
        values, others = (
            {name: metric["value"] for name, metric in found["metrics"].items()} for found in (measured, other)
        )
        assert others == pytest.approx(values, rel=1e-5)
        assert len(text.splitlines()) == len(same.splitlines()) == len(split) + 1
        assert text.partition(",")[0].partition("\n")[0] == "sample"

    def test_predictions_are_read_back_with_their_metrics(
        self, loaded: Task, manifest: Manifest, network: nn.Module, split: Any, tmp_path: Path
    ) -> None:
        if loaded.outcomes is None:
            pytest.skip("outcomes = None")
        measured, text = self.evaluated(manifest, network, split, 32)
        (tmp_path / "predictions.csv").write_text(text)
        found = loaded.outcomes(tmp_path / "predictions.csv", measured)
        assert len(found) == len(found.wrong) == len(split)
        scores = found.scores()(np.ones((len(found), 1), np.int32))
        values = {name: metric["value"] for name, metric in measured["metrics"].items() if name in scores}
        assert {name: float(scores[name][0]) for name in values} == pytest.approx(values, rel=1e-4)

    def test_the_exported_model_gives_predictions_for_batches_of_any_size(
        self, loaded: Task, manifest: Manifest, network: nn.Module, split: Any
    ) -> None:
        inputs, targets = loaded.onnx.pairs(*split.batch(slice(0, 24)))
        wrapped = loaded.onnx.wrap(network, manifest).eval()
        with torch.inference_mode():
            outputs = wrapped(inputs).numpy()
            assert loaded.onnx.probabilities is None or loaded.onnx.probabilities(wrapped(inputs)).isfinite().all()
        whole = loaded.predicted(outputs, targets.numpy(), manifest)
        score = loaded.onnx.score_of(outputs, targets.numpy(), manifest)
        rows = (slice(0, 1), slice(1, 24))
        parts = [loaded.predicted(outputs[part], targets.numpy()[part], manifest) for part in rows]
        for name, column in whole.items():
            assert len(column) == 24
            assert list(column) == [value for part in parts for value in part[name]]
        assert all(part.keys() == whole.keys() for part in parts)
        of_parts = [loaded.onnx.score_of(outputs[part], targets.numpy()[part], manifest) for part in rows]
        assert sum(of_parts) == pytest.approx(score)

    def test_the_chapter_of_the_report_has_a_template_and_values(
        self, loaded: Task, manifest: Manifest, network: nn.Module, split: Any, tmp_path: Path
    ) -> None:
        if (chapter := loaded.chapter) is None:
            pytest.skip("chapter = None")
        measured, text = self.evaluated(manifest, network, split, 32)
        (tmp_path / "predictions.csv").write_text(text)
        json.dump(chapter.values(measured, tmp_path / "predictions.csv"), io.StringIO(), allow_nan=False)
        page = ((chapter.folder or TEMPLATES) / f"{chapter.name}.html").read_text(encoding="utf-8")
        assert f'<section id="{chapter.name}"' in page
