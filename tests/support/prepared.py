"""Small data of each task, to test how it is prepared and loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from workflow_lib import config, data, plan, tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.data import Feature, Manifest, ModelSpec, Source
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.plugins import Section
from workflow_lib.store.events import EventLog
from workflow_lib.training.trainer import Trainer

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, 5, (60, 8)).astype(np.int32)
TABLE = np.column_stack([RANDOM.normal(3, 2, 60), np.arange(60) % 3, RANDOM.normal(size=60)]).astype(np.float32)
TABLE[::7, 0] = np.nan
FEATURES = (Feature("size"), Feature("colour", ("red", "green", "blue")), Feature("age"))
NUMBERS = RANDOM.normal(50, 9, (60, 2)).astype(np.float32)

Prepare = Callable[..., Manifest]


class Params(Section):
    """No settings."""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Return a function that prepares a source as if it came from a data set; shards are in the test's `work`."""
    return preparing(tmp_path, monkeypatch)


def preparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Return the function of the fixture `prepared`."""
    module = ModuleType(f"given.data_{tmp_path.name.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__file__, module.Params = str(Path(__file__)), Params  # type: ignore[attr-defined]

    def prepare(source: Source, shard_samples: int = 20) -> Manifest:
        module.open_source = lambda params, root: source  # type: ignore[attr-defined]
        module.task = lambda params: source.task  # type: ignore[attr-defined]
        settings = {"name": module.__name__, "shard_samples": shard_samples}
        manifest = data.prepare(settings, tmp_path, tmp_path / "work")
        manifest.save(tmp_path / "manifest.json")
        assert Manifest.load(tmp_path / "manifest.json") == manifest
        return manifest

    return prepare


def shapes(manifest: Manifest) -> ModelSpec:
    """Return the shapes of the data, without how its inputs were normalised."""
    return replace(manifest.spec, scale=1.0, mean=(), std=())


def given(inputs: np.ndarray, targets: Any, **fields: Any) -> Source:
    read = {"read": lambda split, rows: inputs[rows], "content": data.content_digest(inputs)}
    return Source(targets={"train": targets}, **(read | fields))


def language(tokens: np.ndarray = TOKENS) -> Source:
    return given(tokens, np.empty((len(tokens), 0), np.int64), task="language", vocabulary=tuple("abcde"))


def regression(targets: np.ndarray = NUMBERS) -> Source:
    return given(TABLE[:, 2:], targets, task="regression")


def table(inputs: np.ndarray = TABLE) -> Source:
    return given(inputs, np.arange(60) % 2, classes=("no", "yes"), features=FEATURES)


TRAINING = {"epochs": 2, "batch_size": 16, "accumulation_steps": 2}


def trained(
    manifest: Manifest,
    folder: Path,
    shared_state: SharedState,
    *,
    workspace: str,
    training: dict[str, Any] = TRAINING,
    augment: dict[str, Any] | None = None,
    hidden: int = 32,
    **loading: Any,
) -> Trainer:
    """Run a small training until it ends or the shared state stops it."""
    model = {"name": "mlp", "params": {"hidden": [hidden]}}
    settings = {"name": "one", "training": training, "model": model, "augment": augment}
    run = plan.base(config.Experiment.model_validate(settings))
    cpu = torch.device("cpu")
    store = CheckpointStore(folder / workspace, fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    trainer = Trainer(
        run,
        spec=manifest.spec,
        objective=tasks.load(manifest.task).objective(run.training, cpu, manifest.splits["train"].per_class, ()),
        train=data.load_split(manifest, "train", folder / "work", **loading),
        validation=data.load_split(manifest, "val", folder / "work", **loading),
        ranks=Ranks(),
        device=cpu,
        shared_state=shared_state,
        store=store,
        saver=Saver(store, interval_s="auto", interval_steps=1000, mtbf_s=14400.0),
        events=EventLog(folder / "events.jsonl"),
        environment={},
        metrics_file=folder / workspace / "metrics.jsonl",
    )
    trainer.fit()
    return trainer
