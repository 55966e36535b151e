"""A model is judged once, on samples it never met, and every number comes with its uncertainty.

Evaluations compute in strict fp32 with deterministic kernels, whatever the precision of the training (see
``computing``). Results are bit-identical for the same batch size, device and thread count; another batch size may
change the last bits of a number, because matrix kernels sum in another order.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from workflow_lib import plan, plugins
from workflow_lib.data import Manifest, ensure, load_split
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation import classification, language, regression
from workflow_lib.evaluation.bootstrap import Resampling
from workflow_lib.evaluation.computing import device_of, judged
from workflow_lib.files import read_json, write_atomic, write_json
from workflow_lib.plan import user_code
from workflow_lib.results import provenance
from workflow_lib.results import write_run as outputs

if TYPE_CHECKING:
    from torch import device, nn

    from workflow_lib.config import Experiment
    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.data import MappedSplit, Split

AnySplit: TypeAlias = "Split | MappedSplit"
Judged: TypeAlias = "tuple[dict[str, Any], str]"  # what was measured, and the table of predictions

logger = logging.getLogger(__name__)


def evaluate(experiment: Experiment, *, run: str, data: Path, work: Path, model: Path, output: Path) -> None:
    """The evaluation on the test split is in `output`, the predictions beside it in predictions.csv.

    Of a run that diverged, `output` says that it did, and there are no predictions.
    """
    if outputs.hand_on_divergence(model, output, "predictions.csv"):
        return
    subject = load_subject(run, data, work, model)
    judge = {"classification": _classes, "regression": _numbers, "language": _tokens}[subject.manifest.task]
    with device_of(experiment) as device:
        split = load_test(experiment, subject.manifest, work, str(device))
        (measured, table), how = judged(lambda: judge(subject, split, experiment.evaluate, device))
        made = provenance.record([data, model], device)
    result = {
        **subject.identity,
        "task": subject.manifest.task,
        "split": "test",
        "samples": len(split),
        "device": str(device),
        **how,
        "trained_in": subject.trained_in,
        **measured,
        "provenance": made,
    }
    if caution := provenance.caution(len(split)):
        logger.warning("%s: the intervals are wide, and one sample changes every number", caution)
    write_atomic(output.with_name("predictions.csv"), table)
    write_json(output, result)
    if absent := result.get("absent_classes"):
        logger.warning("the test split has no sample of: %s; nothing is measured of them", ", ".join(absent))
    name, metric = next(iter(result["metrics"].items()))
    logger.info("%s %s on %d test samples: %s", name, metric["value"], len(split), output)


def _classes(subject: Subject, split: AnySplit, settings: Evaluate, where: device) -> Judged:
    logits = predict(subject.network, split, settings.batch_size, where)
    targets, names = split.targets.cpu().numpy(), subject.manifest.classes
    measured = classification.measure(logits, targets, names, _how(settings))
    return measured, classification.predictions_csv(logits, targets, names)


def _numbers(subject: Subject, split: AnySplit, settings: Evaluate, where: device) -> Judged:
    mean, std = (np.array(one) for one in (subject.manifest.target_mean, subject.manifest.target_std))
    predicted = predict(subject.network, split, settings.batch_size, where).astype(np.float64) * std + mean
    targets = split.targets.cpu().numpy().astype(np.float64) * std + mean
    targets = targets.astype(np.float32).astype(np.float64)  # no more digits than are stored
    return regression.measure(predicted, targets, _how(settings)), regression.predictions_csv(predicted, targets)


def _tokens(subject: Subject, split: AnySplit, settings: Evaluate, where: device) -> Judged:
    (context,), vocabulary = subject.manifest.spec.input_shape, subject.manifest.vocabulary
    size = language.rows_at_once(settings.batch_size, context, len(vocabulary))
    with closing(split.stream(slices(len(split), size))) as batches:
        sums = language.predict(subject.network, (windows for windows, _ in batches), where)
    _refuse_divergence(sums.loss[:, None])
    prompt = split.batch(slice(0, 1))[0][0, : min(language.PROMPT_TOKENS, context)].cpu()
    tokens = language.generate(subject.network, prompt, context, settings.seed, where)
    generated = {
        "prompt": "".join(vocabulary[token] for token in prompt.tolist()),
        "text": "".join(vocabulary[token] for token in tokens),
        "temperature": language.TEMPERATURE,
        "seed": settings.seed,
    }
    return language.measure(sums, _how(settings)) | {"generated": generated}, language.predictions_csv(sums)


def _how(settings: Evaluate) -> Resampling:
    return Resampling(settings.bootstrap, settings.confidence, settings.seed)


def load_test(experiment: Experiment, manifest: Manifest, work: Path, device: str = "cpu") -> AnySplit:
    """The test split as the training has its own: in memory, or read from the shards."""
    in_memory, workers = experiment.data.in_memory, experiment.runtime.workers
    return load_split(manifest, "test", work, device, in_memory=in_memory, workers=workers)


@dataclass(frozen=True)
class Subject:
    """A trained model with the data it belongs to."""

    network: nn.Module
    manifest: Manifest
    identity: dict[str, Any]  # run, digest, data, model: who this is, in every result
    trained_in: str  # precision of the training and its validation


def load_subject(run: str, data: Path, work: Path, model: Path) -> Subject:
    """The model of a run; refused when its weights were trained as another run or on other data."""
    from safetensors.torch import load_file

    config, digest = plan.load_run(run, work)
    manifest = ensure(Manifest.load(data), work)
    trained = outputs.trained(model, work)
    if (trained["digest"], trained["data"]) != (digest, manifest.digest):
        raise UserError(
            f"{model} was trained as run {trained['digest']} on data {trained['data']}, "
            f"but run {digest} on data {manifest.digest} was asked for: train it again"
        )
    if trained["code"] != (code := user_code.digest(config)):
        raise UserError(
            f"{model} was trained with other code than that of now (`everstep explain {digest[:12]}` shows the lines): "
            f"run the pipeline again, which trains it anew, or let the result stand by `everstep accept {digest[:12]}`"
        )
    plugin = plugins.load("models", config.model.name)
    network = plugin.build(plugin.Params.model_validate(config.model.params), manifest.spec)
    network.load_state_dict(load_file(model))
    identity = {
        "run": read_json(Path(run))["run"]["id"] if run.endswith(".json") else run,
        "digest": digest,
        "data": manifest.digest,
        "code": code,
        "model": provenance.file_digest(model),
    }
    return Subject(network.eval(), manifest, identity, config.training.precision)


def predict(network: nn.Module, split: AnySplit, batch_size: int, where: device) -> np.ndarray:
    """What the model gives for each sample of the split, float32 [n, outputs]."""
    import torch

    network = network.to(where).eval()
    with torch.inference_mode(), closing(split.stream(slices(len(split), batch_size))) as batches:
        outputs = torch.cat([network(inputs.to(where)).float().cpu() for inputs, _ in batches]).numpy()
    _refuse_divergence(outputs)
    return outputs


def slices(samples: int, size: int) -> list[slice]:
    """The rows of each batch."""
    return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]


def _refuse_divergence(outputs: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(bad):
        raise EverstepError(
            f"the model gives no finite number for {len(bad)} of {len(outputs)} test samples "
            f"(first: sample {bad[0]}): the training diverged; try a lower optimizer.lr or training.clip_norm"
        )
