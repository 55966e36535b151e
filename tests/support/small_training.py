"""A training of twelve steps on random data in this process, at the real seam of a graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.support.recorded_graph import RecordedGraph
from workflow_lib import config, plan, tasks
from workflow_lib.checkpoint import CheckpointStore
from workflow_lib.checkpoint.saver import Saver
from workflow_lib.data import ModelSpec, Split
from workflow_lib.distributed.ranks import Ranks
from workflow_lib.distributed.shared_state import SharedState
from workflow_lib.store.events import EventLog
from workflow_lib.training import snapshot
from workflow_lib.training.loss import with_own_loss
from workflow_lib.training.trainer import Trainer

CPU = torch.device("cpu")
IMAGES, TOKENS = ModelSpec((3, 8, 8), 4), ModelSpec((8,), 20, "language")


def trainer(folder: Path, settings: dict[str, Any], graph: RecordedGraph | None = None, **options: Any) -> Trainer:
    """Return a training of 12 steps in 3 epochs on 40 samples: on random ones, unless there is a ``split``."""
    spec = options.pop("spec", TOKENS if settings["model"]["name"] == "transformer" else IMAGES)
    torch.manual_seed(0)
    split = options.pop("split", None)
    if split is None and spec.task == "language":
        split = Split(torch.randint(0, 20, (40, 9)), torch.empty(40, 0))
    elif split is None:
        split = Split(torch.randn(40, *spec.input_shape), torch.randint(0, 4, (40,)))
    device = options.pop("device", CPU)
    training = {"batch_size": 10, "epochs": 3, **settings.get("training", {})}
    run = plan.base(config.Experiment.model_validate({"name": "x", **settings, "training": training}))
    store = CheckpointStore(folder / "checkpoints", fingerprint={}, attempt="0" * 32, may_publish=lambda: True)
    return Trainer(
        run,
        spec=spec,
        objective=with_own_loss(
            tasks.load(spec.task).objective(run.training, device, (10,) * spec.outputs, (1.0,) * spec.outputs),
            run.training,
            device,
            ranks=1,
            is_main=True,
        ),
        train=split,
        validation=split,
        ranks=Ranks(),
        device=device,
        shared_state=options.pop("shared_state", None) or SharedState(1),
        store=store,
        saver=Saver(store, interval_s=1e9, interval_steps=None, mtbf_s=1e4),
        events=EventLog(folder / "events.jsonl"),
        environment={},
        metrics_file=folder / "metrics.jsonl",
        graph=graph,
        **options,
    )


def drawn(spec: ModelSpec) -> Split:
    """Return 40 random samples."""
    torch.manual_seed(0)
    inputs = torch.randn(40, *spec.input_shape)
    if spec.categories:
        inputs[:, 1] = torch.arange(40) % 3
    targets = {
        "classification": torch.randint(0, spec.outputs, (40,)),
        "multilabel": torch.randint(0, 2, (40, spec.outputs), dtype=torch.uint8),
        "regression": torch.randn(40, spec.outputs),
        "segmentation": torch.randint(0, spec.outputs, (40, *spec.input_shape[1:]), dtype=torch.uint8),
        "text_classification": torch.randint(0, spec.outputs, (40,)),
        "language": torch.empty(40, 0),
    }
    if spec.task == "language":
        inputs = torch.randint(0, spec.outputs, (40, spec.input_shape[0] + 1))
    elif spec.task == "text_classification":
        inputs = torch.randint(0, 20, (40, *spec.input_shape))
    return Split(inputs, targets[spec.task])


def everything(done: Trainer) -> dict[str, Any]:
    """Return all that decides how a run continues, and all that it has measured: tensors as bytes."""
    groups = {**snapshot.tensors(done.state), "log": {"rows": done.state.log}}
    named = {f"{group} {name}": value for group, tensors in groups.items() for name, value in tensors.items()}
    return {
        **{name: value.detach().reshape(-1).view(torch.uint8).tolist() for name, value in named.items()},
        "record": json.dumps(snapshot.record(done.state), sort_keys=True),
    }


def trained(folder: Path, settings: dict[str, Any], graph: RecordedGraph | None = None, **options: Any) -> Any:
    done = trainer(folder, settings, graph, **options)
    done.fit()
    return everything(done)
