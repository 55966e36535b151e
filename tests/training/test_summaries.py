from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.recorded_graph import RecordedGraph
from tests.support.small_training import drawn, everything, trainer
from workflow_lib import config
from workflow_lib.data import ModelSpec
from workflow_lib.plugins import task_facts
from workflow_lib.results import summaries
from workflow_lib.store import layout
from workflow_lib.training import histograms
from workflow_lib.training.summaries import MOST, Recording, _caption, interval

MLP = {"model": {"name": "mlp", "params": {"hidden": [8]}}}


def made(tensors: dict[str, torch.Tensor], folder: Path, gather: Any = None) -> dict[str, summaries.Histogram]:
    """Return the statistics as they are read back from a file."""
    summaries.write(folder / "summary", histograms.statistics(tensors, gather), {})
    return dict(summaries.read(folder / "summary").histograms)


def test_a_histogram_is_that_of_numpy_without_values_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histograms, "AT_ONCE", 7)
    values = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    values[0, 0], values[3, 2] = float("nan"), float("inf")
    finite = values[values.isfinite()].double().numpy()
    found = made({"a": values, "equal": torch.full((3,), 2.0), "empty": torch.zeros(0)}, tmp_path)
    counts, edges = np.histogram(finite, summaries.BINS)
    assert list(found["a"].counts) == counts.tolist()
    assert found["a"].edges == pytest.approx(edges.tolist())
    assert (found["a"].values, found["a"].not_finite) == (43, 2)
    assert (found["a"].total, found["a"].norm) == pytest.approx((finite.sum(), np.linalg.norm(finite)))
    assert (found["equal"].values, sum(found["equal"].counts)) == (3, 3)
    assert (found["equal"].edges[0], found["equal"].edges[-1]) == (1.5, 2.5)
    assert (found["empty"].values, sum(found["empty"].counts)) == (0, 0)


def test_statistics_of_shards_are_those_of_the_whole_tensor(tmp_path: Path) -> None:
    whole = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shards = [{"a": part} for part in (whole[:25], whole[25:], whole[:0])]
    ranks: list[list[torch.Tensor]] = []
    for shard in shards:  # what each rank would send: the moments, then the counts of its shard
        sent: list[torch.Tensor] = []
        histograms.statistics(shard, lambda value, sent=sent: sent.append(value) or [value])
        ranks.append(sent[:1])
    moments = [sent[0] for sent in ranks]
    low, high = float(whole.min()), float(whole.max())
    counts = [histograms._counts(shard["a"], low, high)[None] for shard in shards]
    exchanged = itertools.chain([moments, counts])
    found = made(shards[0], tmp_path, lambda value: next(exchanged))["a"]
    expected = made({"a": whole}, tmp_path)["a"]
    assert (found.counts, found.values, found.low, found.high) == (expected.counts, 40, low, high)
    assert found.norm == pytest.approx(expected.norm)


@pytest.mark.parametrize("is_captured", [True, False])
def test_a_step_of_a_graph_has_the_summary_of_a_step_without_one(tmp_path: Path, is_captured: bool) -> None:
    """If the capture fails, the gradients are those of the step that was computed as usual."""
    recording = Recording(2, 0, SimpleNamespace())  # type: ignore[arg-type]
    graph, done = RecordedGraph(), {}
    if not is_captured:
        graph.replay = lambda: (_ for _ in ()).throw(RuntimeError("no replay"))  # type: ignore[method-assign]
    for name, given in (("plain", None), ("graph", graph)):
        done[name] = trainer(tmp_path / name, MLP, given, recording=recording)
        done[name].fit()
    found = {
        name: [path.read_bytes() for _, path in layout.summary_files(tmp_path / name)] for name in ("plain", "graph")
    }
    assert (graph.replays > 0) == is_captured
    assert len(found["plain"]) == 6
    assert found["graph"] == found["plain"]
    assert everything(done["graph"]) == everything(done["plain"])


class Counting(torch.nn.Module):
    """A model that draws numbers and counts its calls, also in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(192, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(inputs.flatten(1)) + 0.01 * torch.rand(1)


def test_predictions_of_a_model_that_draws_and_counts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow_lib.models.build", lambda *given: Counting())
    manifest: Any = SimpleNamespace(
        task="classification", kind="classes", classes=tuple("abcd"), mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0
    )
    spec = ModelSpec((3, 8, 8), 4)
    done = {}
    for name, recording in (("plain", None), ("recorded", Recording(2, 3, manifest))):
        done[name] = trainer(tmp_path / name, MLP, spec=spec, recording=recording)
        done[name].fit()
    assert everything(done["recorded"]) == everything(done["plain"])
    (_, path), *_ = layout.summary_files(tmp_path / "recorded")
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in summaries.read(path).images.items()}
    assert sizes == {"inputs": (304, 104), "predictions": (304, 128)}


CNN = {"model": {"name": "cnn", "params": {"channels": [4]}}}
KINDS: dict[str, tuple[dict[str, Any], ModelSpec, dict[str, tuple[int, int]]]] = {
    "classes": (CNN, ModelSpec((3, 8, 8), 4), {"inputs": (204, 104), "predictions": (204, 128)}),
    "labels": (CNN, ModelSpec((1, 8, 8), 4, "multilabel"), {"inputs": (204, 104), "predictions": (204, 128)}),
    "numbers": (CNN, ModelSpec((3, 8, 8), 1, "regression"), {"inputs": (204, 104), "predictions": (204, 128)}),
    "masks": (
        {"model": {"name": "unet", "params": {"levels": 1, "width": 2}}},
        ModelSpec((3, 8, 8), 4, "segmentation"),
        {"inputs": (204, 104), "predictions": (204, 304)},
    ),
    "tables": ({"model": {"name": "tabular"}}, ModelSpec((3,), 4, categories=(0, 3, 0)), {}),
    "texts": (
        {"model": {"name": "text_encoder", "params": {"layers": 1, "width": 8, "heads": 2}}},
        ModelSpec((8,), 4, "text_classification", vocabulary=20),
        {},
    ),
    "language": (
        {"model": {"name": "transformer", "params": {"layers": 1, "width": 8, "heads": 2}}},
        ModelSpec((8,), 20, "language", vocabulary=20),
        {},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_has_its_gradients_and_only_images_have_pictures(tmp_path: Path, kind: str) -> None:
    settings, spec, sizes = KINDS[kind]
    channels = spec.input_shape[0]
    manifest: Any = SimpleNamespace(
        task=spec.task, kind=task_facts(spec.task).targets,
        input_shape=spec.input_shape, has_tokens=spec.vocabulary > 0,
        classes=tuple("abcd"), outputs=("y",), target_mean=(5.0,), target_std=(2.0,),
        mean=(0.0,) * channels, std=(1.0,) * channels, scale=1.0,
    )  # fmt: skip
    section = config.load([{"name": "a", "tracking": {"every_steps": 12, "images": 2}}]).tracking
    recording = Recording.of(section, manifest)
    done = trainer(tmp_path, settings, spec=spec, split=drawn(spec), recording=recording)
    done.fit()
    ((_, path),) = layout.summary_files(tmp_path)
    found = summaries.read(path)
    assert {name: Image.open(io.BytesIO(content)).size for name, content in found.images.items()} == sizes
    weights = {name for name, _ in done.state.module.named_parameters()}
    assert {name.removeprefix("parameters/") for name in found.histograms if name.startswith("parameters/")} == weights
    assert all(f"gradients/{name}" in found.histograms for name in weights)


def test_a_number_is_no_error_and_has_six_digits() -> None:
    manifest: Any = SimpleNamespace(kind="numbers", target_mean=(5.0,), target_std=(2.0,), outputs=("y",))
    told = _caption({"predicted": np.array([0.5054561])}, torch.tensor([0.25]), 0, manifest)
    assert told == (["true 5.5", "pred. 0.505456"], None)


def test_more_summaries_than_a_run_may_have_are_spread_over_its_steps() -> None:
    assert interval(100, 50_000) == interval(100, 49_999) == 100
    assert interval(100, 50_100) == 200
    assert interval(7, 3) == 7
    for every, total in ((1, 10**6), (3, 10**5), (100, 10**8)):
        chosen = interval(every, total)
        assert chosen % every == 0
        assert MOST * 0.9 < total // chosen <= MOST
