"""A model is judged once, on samples it never met, and every number comes with its uncertainty.

For a batch size, a device and a thread count the results are the same bits; another batch size may change the last
bits of a number, because matrix kernels sum in another order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib import plan, plugins, provenance, shards
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation import classification
from workflow_lib.evaluation.bootstrap import Resampling
from workflow_lib.files import read_json, write_atomic, write_json
from workflow_lib.runtime.device import resolve

if TYPE_CHECKING:
    from torch import Tensor, device, nn

    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)


def evaluate(experiment: Experiment, *, run: str, data: Path, work: Path, model: Path, output: Path) -> None:
    """The evaluation on the test split is in `output`, the predictions beside it in predictions.csv."""
    subject = load_subject(run, data, work, model)
    settings = experiment.evaluate
    split = shards.load_split(subject.manifest, "test", work, in_memory=True)
    device = resolve(experiment.runtime.device)
    logits = predict(subject.network, split.inputs, settings.batch_size, device)
    targets = split.targets.numpy()
    how = Resampling(settings.bootstrap, settings.confidence, settings.seed)
    result = {
        **subject.identity,
        "split": "test",
        "samples": len(targets),
        **classification.measure(logits, targets, subject.manifest.classes, how),
        "provenance": provenance.record([data, model], device),
    }
    table = classification.predictions_csv(logits, targets, subject.manifest.classes)
    write_atomic(output.with_name("predictions.csv"), table)
    write_json(output, result)
    logger.info("accuracy %s on %d test samples: %s", result["metrics"]["accuracy"]["value"], len(targets), output)


@dataclass(frozen=True)
class Subject:
    """A trained model with the data it belongs to."""

    network: nn.Module
    manifest: shards.Manifest
    identity: dict[str, Any]  # run, digest, data, model: who this is, in every result


def load_subject(run: str, data: Path, work: Path, model: Path) -> Subject:
    """The model of a run; refused when its weights were trained as another run or on other data."""
    from safetensors.torch import load_file

    config, digest = plan.load_run(run, work)
    manifest = shards.Manifest.load(data)
    trained = read_json(model.with_name("train.json"), "digest", "data", "model")
    if (trained["digest"], trained["data"]) != (digest, manifest.digest):
        raise UserError(
            f"{model} was trained as run {trained['digest']} on data {trained['data']}, "
            f"but run {digest} on data {manifest.digest} was asked for: train it again"
        )
    plugin = plugins.load("models", config.model.name)
    network = plugin.build(plugin.Params.model_validate(config.model.params), manifest.spec)
    network.load_state_dict(load_file(model))
    identity = {
        "run": read_json(Path(run))["run"]["id"] if run.endswith(".json") else run,
        "digest": digest,
        "data": manifest.digest,
        "model": provenance.file_digest(model),
    }
    return Subject(network.eval(), manifest, identity)


def predict(network: nn.Module, inputs: Tensor, batch_size: int, device: device | None = None) -> np.ndarray:
    """Logits, float32 [n, classes], of normalised inputs."""
    import torch

    where = device or torch.device("cpu")
    network = network.to(where).eval()
    with torch.inference_mode():
        parts = [network(batch.to(where)).float().cpu() for batch in inputs.split(batch_size)]
    logits = torch.cat(parts).numpy()
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise EverstepError(
            f"the model gives no finite number for {len(bad)} of {len(logits)} test samples "
            f"(first: sample {bad[0]}): the training diverged; try a lower optimizer.lr or training.clip_norm"
        )
    return logits
