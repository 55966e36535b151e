"""Evaluation of a trained model on the test split, which neither training nor selection has used.

Evaluations compute in strict fp32 with deterministic kernels, whatever the precision of the training (the reason is in
``computing``). Results are bit-identical for the same batch size, device and thread count. A different batch size may
change the last bits of a number, because matrix kernels then sum in another order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import models, plan, tasks
from workflow_lib.data import Manifest, ensure, load_split
from workflow_lib.data.names import names_of_split, with_names
from workflow_lib.errors import UserError
from workflow_lib.evaluation import generated, views
from workflow_lib.evaluation.computing import device_of, judged
from workflow_lib.files import read_json, write_atomic
from workflow_lib.metrics.outcomes import VIEWS
from workflow_lib.plan import user_code
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance, source_weights
from workflow_lib.results import write_run as outputs
from workflow_lib.results.statements import Evaluation, ModelIdentity, write_evaluation
from workflow_lib.tasks import AnySplit

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)


def evaluate(experiment: Experiment, *, run: str, data: Path, work: Path, model: Path, output: Path) -> None:
    """Write predictions.csv beside `output`, then the metrics to `output`.

    If the run diverged, `output` says so, and predictions.csv is empty.
    """
    if outputs.pass_on_divergence(model, output, results_layout.PREDICTIONS):
        return
    trained = load_trained(run, data, work, model)
    manifest = trained.manifest
    tta = experiment.evaluate.tta
    if trained.examples is not None:
        if len(views.views(tta)) > 1:
            raise UserError("evaluate.tta: the model of this run takes inputs of its own training step; remove it")
        _write_validated(trained, data, work, model, output)
        return
    network = views.with_views(trained.network, manifest, tta)
    measure = tasks.load(manifest.task).evaluate
    with device_of(experiment.evaluate.device) as device:
        split = load_test(experiment, manifest, work, str(device))
        (measured, predictions), how = judged(lambda: measure(network, manifest, split, experiment.evaluate, device))
        if (training := plan.load_run(run, work)[0].training).metrics or training.loss is not None:
            from workflow_lib.evaluation import own_metrics  # torchmetrics takes a second to import

            given = (training, network, manifest, split, experiment.evaluate, device)
            found, _ = judged(lambda: own_metrics.measure(*given))
            measured["metrics"] |= {k: value for k, value in found.items() if k not in measured["metrics"]}
        made = provenance.record([data, model], device)
    statement: Evaluation = {
        **trained.identity,
        "task": manifest.task,
        "split": "test",
        "samples": len(split),
        "device": str(device),
        "trained_in": trained.trained_in,
        "metrics": measured["metrics"],
        "provenance": made,
    }
    if caution := provenance.caution(len(split)):
        logger.warning("%s: the intervals are wide, and one sample changes every number", caution)
    if (number := len(views.views(tta))) > 1:
        how |= {"views": number, "tta": tta.model_dump()}
        logger.info("probabilities are the mean over %d views of each image", number)
    names = names_of_split(data, manifest, "test")
    if number > 1:  # a reader of the table sees that the model alone gives other probabilities
        names = {**(names or {}), VIEWS: [str(number)] * len(split)}
    named = with_names(predictions, names)
    write_atomic(output.with_name(results_layout.PREDICTIONS), named)
    write_evaluation(output, statement, {**how, **measured})
    if absent := measured.get("absent_classes"):
        logger.warning("the test split has no sample of: %s; nothing is measured of them", ", ".join(absent))
    name, metric = next(iter(statement["metrics"].items()))
    logger.info("%s %s on %d test samples: %s", name, metric["value"], len(split), output)


def _write_validated(trained: TrainedModel, data: Path, work: Path, model: Path, output: Path) -> None:
    """Write the metrics of the best validation as the result of a run whose model is none of the task."""
    import torch

    split = trained.manifest.splits["val"]
    measured = generated.best_metrics(outputs.trained(model, work), model)
    statement: Evaluation = {
        **trained.identity,
        "task": trained.manifest.task,
        "split": "val",
        "samples": split.samples,
        "device": "cpu",
        "trained_in": trained.trained_in,
        "metrics": measured["metrics"],
        "provenance": provenance.record([data, model], torch.device("cpu")),
    }
    write_atomic(output.with_name(results_layout.PREDICTIONS), "")
    write_evaluation(output, statement, {"precision": trained.trained_in, **measured})
    logger.info("the metrics of the best validation are the result of a model with inputs of its own: %s", output)


def load_test(experiment: Experiment, manifest: Manifest, work: Path, device: str = "cpu") -> AnySplit:
    """Return the test split, in memory or read from the shards, according to `data.in_memory`.

    If the shards are missing, the data is prepared again.
    """
    manifest = ensure(manifest, work)
    in_memory, workers = experiment.data.in_memory, experiment.runtime.workers
    return load_split(manifest, "test", work, device, in_memory=in_memory, workers=workers)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with the manifest of its data.

    identity     digests of run, data, code and weights, which every result contains
    trained_in   precision of the training and its validation
    examples     example inputs, if the model takes others than the data's; the manifest then has another task
    """

    network: nn.Module
    manifest: Manifest
    identity: ModelIdentity
    trained_in: str
    examples: generated.Examples | None = None


def load_trained(run: str, data: Path, work: Path, model: Path) -> TrainedModel:
    """Return the model of a run, ready for evaluation; the shards of its data need not exist.

    Raises UserError if the weights are those of another run, or were trained on other data or by other code.
    """
    from safetensors.torch import load_file

    config, digest = plan.load_run(run, work)
    manifest = Manifest.load(data)
    trained = outputs.trained(model, work)
    if (trained["digest"], trained["data"]) != (digest, manifest.digest):
        raise UserError(
            f"{model} was trained as run {trained['digest']} on data {trained['data']}, "
            f"but run {digest} on data {manifest.digest} was asked for: train it again"
        )
    # weights that were copied to another place are those of a run of this project
    is_in_place = len(model.parents) > 3 and model.parents[1].name == "runs"
    place = (model.parents[3], model.parents[2].name) if is_in_place else (results_layout.RESULTS, None)
    weights = source_weights.find(config, *place)
    if trained["code"] != (code := user_code.digest(config, source_weights.digests_of(weights))):
        raise UserError(
            f"{model} was trained by code that has changed since (`everstep explain {digest[:12]}` shows the lines): "
            f"run the pipeline again, which trains it again, or keep the result by `everstep accept {digest[:12]}`"
        )
    network = models.build(config.model, manifest.spec)
    try:
        models.load_weights(network, load_file(model))
    except RuntimeError as error:  # the result was accepted for code that builds other weights
        raise UserError(
            f"{model} does not fit the model that the code builds now: {error}. Undo the change of the code, or train "
            f"the run again by `everstep retrain {digest[:12]}`"
        ) from error
    identity: ModelIdentity = {
        "run": read_json(Path(run))["run"]["id"] if run.endswith(".json") else run,
        "digest": digest,
        "data": manifest.digest,
        "code": code,
        "model": provenance.file_digest(model),
    }
    examples = generated.examples(config, manifest.spec, weights)
    if examples is not None:
        manifest = examples.described(manifest)
    return TrainedModel(network.eval(), manifest, identity, config.training.precision, examples)
