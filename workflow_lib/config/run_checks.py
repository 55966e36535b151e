"""Checks of settings that are valid by themselves, but contradict each other within a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workflow_lib import plugins
from workflow_lib.config.by_path import takes
from workflow_lib.config.experiment import Runtime
from workflow_lib.config.length import Length
from workflow_lib.config.length_checks import length_problems, warmup_problem
from workflow_lib.config.messages import shown
from workflow_lib.config.metric_checks import metric_problem, own_metric_problems
from workflow_lib.config.run import Data, Training
from workflow_lib.config.yaml import KeyPath

# Precisions of each kind of device. The device that `auto` selects is known only when training starts.
PRECISIONS = {
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp32", "bf16", "fp16", "tf32"),
}
# optimizers of torch that update each number of a weight by itself, so that each rank can update its shards
NAMES = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
ELEMENTWISE = tuple(f"torch.optim:{name}" for name in NAMES)
# settings that a training step of one's own has no use for, by section, and the reason
LOSS, MIXED = "it computes the loss itself", "it gets one target for each sample"
NOT_OF_A_STEP: dict[str, dict[str, str]] = {
    "training": {
        **dict.fromkeys(("loss", "label_smoothing", "loss_chunk", "focal_gamma", "class_weights"), LOSS),
        "accumulation_steps": "its `step` gets the whole batch of a rank, and can divide it: backward passes add up",
        "parallel": "each rank holds its modules whole, and averages the gradients of each optimizer",
        "compile": "compiled code depends on the shapes that a process has computed before, which a resume does not"
        " repeat",
    },
    "augment": dict.fromkeys(("mixup", "cutmix"), MIXED),
}
# optimizers whose kernels can read the learning rate from the GPU's memory
GRAPH_OPTIMIZERS = ("adamw", "sgd")


def run_problems(run: Mapping[str, Any], runtime: Runtime) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key path and the message of each contradiction in a run, given by its sections, on this machine."""
    training, schedule, data = run["training"], run["schedule"], run["data"]
    if data.validation_fraction + data.test_fraction >= 1:
        yield (
            ("data", "validation_fraction"),
            f"{data.validation_fraction:g} and data.test_fraction={data.test_fraction:g} leave no training split;"
            " allowed: a sum below 1",
        )
    yield from _fold_problems(data)
    yield from length_problems(training, schedule)
    ranks = runtime.nproc * runtime.nodes
    least = ranks * training.accumulation_steps
    if training.batch_size < least:
        yield (
            ("training", "batch_size"),
            f"{training.batch_size} samples are too few for {ranks} ranks (runtime.nproc x runtime.nodes) x"
            f" {training.accumulation_steps} micro-batches (training.accumulation_steps); allowed: at least {least}",
        )
    yield from _task_problems(run)
    yield from data_problems(run, plugins.facts(data.name, data.params))
    yield from _exclusive_problems(training)
    yield from _step_problems(run)
    init = run["model"].init
    if init.source is None:
        for name, is_set in (("map", init.map), ("strict", not init.strict)):
            if is_set:
                yield ("model", "init", name), "is about weights to start from; set model.init.from, or leave it out"
    device = runtime.device.partition(":")[0]
    if training.precision not in PRECISIONS.get(device, (training.precision,)):
        yield (
            ("training", "precision"),
            f"{training.precision} cannot be computed on runtime.device={runtime.device};"
            f" allowed there: {', '.join(PRECISIONS[device])}",
        )
    if runtime.cuda_graphs == "on":
        what = "runtime.device is cpu" if device == "cpu" else None
        if what := what or graph_problem(training, run["optimizer"].name, ranks):
            yield ("runtime", "cuda_graphs"), f"on is impossible: {what}; allowed: auto, off"
    if what := decay_problem(run["optimizer"], run["model"].init.weight_decay):
        yield ("model", "init", "weight_decay"), what
    if training.parallel == "fsdp" and (what := sharding_problem(run["optimizer"].name)):
        yield ("training", "parallel"), what


def decay_problem(optimizer: Any, decays: Mapping[str, float]) -> str | None:
    """Return why groups of weights cannot have decays of their own with this optimizer, or None."""
    name = optimizer.name
    if decays and plugins.is_object_path(name) and not takes(plugins.load_object("optimizer", name), "weight_decay"):
        return f"optimizer.name={name} has no weight decay (no argument `weight_decay`); allowed: {{}}"
    return None


def sharding_problem(optimizer: str) -> str | None:
    """Return why this optimizer cannot update the shards of each weight by themselves, or None."""
    if optimizer == "muon":
        return "fsdp shards the matrices that optimizer.name=muon needs whole; allowed with muon: ddp"
    if plugins.is_object_path(optimizer) and optimizer not in ELEMENTWISE:
        return (
            f"fsdp shards each weight, and optimizer.name={optimizer} may need whole ones (for a norm, or rows and"
            f" columns); allowed with it: ddp. Known to update each number by itself: {', '.join(ELEMENTWISE)}"
        )
    return None


def _fold_problems(data: Data) -> Iterator[tuple[KeyPath, str]]:
    if (data.folds is None) != (data.fold is None):
        missing = "fold" if data.fold is None else "folds"
        yield (
            ("data", missing),
            "data.folds and data.fold belong together; `sweep: {folds: 5}` sets both for each of five runs",
        )
    elif data.folds is not None and data.fold is not None and data.fold >= data.folds:
        yield ("data", "fold"), f"{data.fold} is not below data.folds={data.folds}; folds are counted from 0"


def _task_problems(run: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the problems of settings that do not apply to the task of the data."""
    training, task = run["training"], plugins.task(run["data"].name, run["data"].params)
    metrics: dict[KeyPath, str] = {("training", "select_metric"): training.select_metric}
    if training.early_stopping is not None:
        metrics["training", "early_stopping", "metric"] = training.early_stopping.metric
    for path, metric in metrics.items():
        if what := metric_problem(metric, task, training):
            yield path, what
    yield from own_metric_problems(training, task)
    if plugins.task_facts(task).answers == "pixel":
        for name in ("mixup", "cutmix"):
            if value := getattr(run["augment"], name):
                yield ("augment", name), f"{shown(value)} mixes samples, and masks cannot be mixed; allowed: 0"
    facts = plugins.all_facts()
    for name in dict.fromkeys(setting for known in facts.values() for setting in known.settings):
        tasks = [other for other, known in facts.items() if name in known.settings]
        value, default = getattr(training, name), type(training).model_fields[name].default
        if value != default and task not in tasks:
            yield (
                ("training", name),
                f"{shown(value)} does not apply to {task}, only to {', '.join(tasks)}; allowed: {shown(default)}",
            )


def data_problems(run: Mapping[str, Any], known: plugins.DatasetFacts) -> Iterator[tuple[KeyPath, str]]:
    """Yield the problems of settings that do not fit the facts known about the data before it is read."""
    data, training, augment = run["data"], run["training"], run["augment"]
    model = run["model"].name
    accepted, answers = plugins.accepted_inputs(model), plugins.task_facts(plugins.task(data.name, data.params)).answers
    if known.inputs is not None and known.inputs not in accepted:
        fitting = [name for name in plugins.available("models") if _fits(name, known.inputs, answers)]
        yield (
            ("model", "name"),
            f"{model} is for {' or '.join(accepted)}, and data.name={data.name} has {known.inputs};"
            f" allowed: {', '.join(fitting)}",
        )
    elif answers not in plugins.answers(model):
        fitting = [name for name in plugins.available("models") if _fits(name, known.inputs, answers)]
        yield (
            ("model", "name"),
            f"{model} gives an answer for each {' or '.join(plugins.answers(model))}, and data.name={data.name} needs"
            f" one for each {answers}; allowed: {', '.join(fitting)}",
        )
    if known.inputs not in (None, "images"):
        for name, value in augment:
            if value:
                yield ("augment", name), f"{shown(value)} is for images, and the data has {known.inputs}; allowed: 0"
        if training.memory_format != "contiguous":
            yield (
                ("training", "memory_format"),
                f"{training.memory_format} is for images, and the data has {known.inputs}; allowed: contiguous",
            )
    if known.size is not None and (what := crop_problem(augment.crop, known.size)):
        yield ("augment", "crop"), what
    weights = training.class_weights
    are_all_kept = data.min_class_count == 1 or known.training_samples is not None  # of prepared data
    if known.classes is not None and are_all_kept and isinstance(weights, list) and len(weights) != known.classes:
        yield (
            ("training", "class_weights"),
            f"{len(weights)} weights; the data has {known.classes} classes, and each needs one",
        )
    if (samples := training_samples(data, known)) is not None:
        if what := batch_problem(training.batch_size, samples):
            yield ("training", "batch_size"), what
        elif not any(length_problems(training, run["schedule"])):
            length = Length.of(training, samples // training.batch_size)
            if problem := warmup_problem(run["schedule"], length):
                yield problem


def _fits(model: str, inputs: plugins.Inputs | None, answers: plugins.Answers) -> bool:
    """Return True if a model takes these inputs, which may be unknown, and gives these answers."""
    return (inputs is None or inputs in plugins.accepted_inputs(model)) and answers in plugins.answers(model)


def training_samples(data: Data, known: plugins.DatasetFacts) -> int | None:
    """Return the number of samples of the training split, or None if it is not known before the data is read."""
    if known.training_samples is not None:
        return known.training_samples
    if known.samples is None or data.validation_fraction + data.test_fraction >= 1:
        return None
    test = round(known.samples * data.test_fraction)
    validation = (known.samples - test) // data.folds if data.folds else known.samples * data.validation_fraction
    return known.samples - test - round(validation)


def batch_problem(batch_size: int, samples: int) -> str | None:
    """Return the problem of `training.batch_size` with a training split of so many samples, or None."""
    if batch_size <= samples:
        return None
    return f"{batch_size} samples are more than the training split has; allowed: at most {samples}"


def crop_problem(crop: int, size: tuple[int, int]) -> str | None:
    """Return the problem of `augment.crop` with images of this height and width, or None."""
    height, width = size
    if crop < min(size):
        return None
    return f"{crop} pixels can crop an image of {height}x{width} to padding alone; allowed: at most {min(size) - 1}"


def _exclusive_problems(training: Training) -> Iterator[tuple[KeyPath, str]]:
    """Yield the problems of training settings that exclude each other."""
    for name in ("label_smoothing", "loss_chunk", "focal_gamma", "class_weights") if training.loss is not None else ():
        value, default = getattr(training, name), type(training).model_fields[name].default
        if value != default:
            yield (
                ("training", name),
                f"{shown(value)} changes the loss of the task, and training.loss={training.loss} replaces it; allowed:"
                f" {shown(default)}, or an argument in training.loss_params",
            )
    if training.compile and training.activation_checkpointing:
        yield (
            ("training", "activation_checkpointing"),
            "true cannot be combined with training.compile=true, which does not support it; keep one of them",
        )
    if training.compile and training.parallel == "fsdp":
        yield ("training", "compile"), "true cannot be combined with training.parallel=fsdp; allowed: false, or ddp"
    if training.memory_format != "contiguous" and training.parallel == "fsdp":
        yield (
            ("training", "memory_format"),
            f"{training.memory_format} cannot be combined with training.parallel=fsdp, whose shards have no such order;"
            " allowed: contiguous, or ddp",
        )
    if training.sampling == "balanced" and training.class_weights == "balanced":
        yield (
            ("training", "class_weights"),
            "balanced cannot be combined with training.sampling=balanced; keep one of them",
        )


def _step_problems(run: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the problems of settings that a training step of one's own does not use."""
    training: Training = run["training"]
    if training.step is None:
        return
    for section, reasons in NOT_OF_A_STEP.items():
        for name, reason in reasons.items():
            value, default = getattr(run[section], name), type(run[section]).model_fields[name].default
            if value != default:
                yield (
                    (section, name),
                    f"{shown(value)} does not apply to a training step of one's own (training.step={training.step}):"
                    f" {reason}; allowed: {shown(default)}",
                )
    if training.precision == "fp16":
        yield (
            ("training", "precision"),
            "fp16 needs a loss scale, which a training step of one's own does not have; allowed: bf16, tf32, fp32",
        )


def graph_problem(training: Training, optimizer: str, processes: int) -> str | None:
    """Return why the steps of a run can never be captured as a CUDA graph, or None."""
    if training.step is not None:
        return "a step of training.step is the user's own"
    if training.parallel == "fsdp":
        return "training.parallel: fsdp gathers the weights anew in each step"
    if processes > 1:
        return f"the steps of {processes} processes (training.parallel: {training.parallel}) wait for each other"
    if training.activation_checkpointing:
        return "training.activation_checkpointing restores random generators within a step"
    if optimizer not in GRAPH_OPTIMIZERS:
        return f"optimizer.name: {optimizer} waits for its learning rate; possible: {', '.join(GRAPH_OPTIMIZERS)}"
    return None
