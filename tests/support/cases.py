"""The points at which tests kill or stop a training, and experiments for them."""

from __future__ import annotations

import random
from typing import Any

from tests.support.project import merged

# steps of two micro-batches, and everything else with state: momentum, plateau, early stopping, a tied weight
ACCUMULATED: dict[str, Any] = {
    "model": {"params": {"tied": True}},
    "training": {"epochs": 9, "accumulation_steps": 2, "early_stopping": {"metric": "val_loss", "patience": 9}},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "schedule": {"name": "plateau", "warmup_epochs": 0, "patience": 0, "factor": 0.5},
}

# two models with an optimizer each, a gradient penalty, an average, counters and logged values
GAN: dict[str, Any] = {"model": {"name": "tests.plugins.gan"}, "training": {"step": "tests.plugins.gan:Step"}}
# validated and logged within epochs of 17 steps, and ended within one
OWN_METRICS: list[Any] = [  # states that are sums, lists of tensors, JSON values, and outputs
    "f1_macro",
    "auroc",
    "tests.plugins.own:Streak",
    {"name": "tests.plugins.own:spread", "params": {"power": 2.0}, "maximize": False},
]
OWN_PARTS: dict[str, Any] = {
    "optimizer": {"name": "tests.plugins.own:Heavy", "lr": 0.05, "weight_decay": 0.01},
    "schedule": {"name": "tests.plugins.own:noam", "params": {"rise": 0.2}},
    "training": {
        "loss": "tests.plugins.own:smoothed",
        "loss_params": {"power": 1.5, "noise": 0.1},
        "epochs": 9,  # each stop continues a little later
        "batch_size": 33,
        "metrics": OWN_METRICS,
        "select_metric": "val_streak",
    },
}
COUNTED: dict[str, Any] = {
    "training": {"batch_size": 66, "epochs": None, "max_steps": 40, "validate_every_steps": 6, "log_every_steps": 3},
    "schedule": {"name": "cosine", "warmup_epochs": 0, "warmup_steps": 5},
}

# point, count, rank (-1: the launcher), in the order in which an attempt passes them
IN_TRAINING: tuple[tuple[str, int, int], ...] = (
    ("attempt", 1, -1),
    ("launch", 1, -1),
    ("rank", 1, 0),
    ("build", 1, 0),
    ("load", 1, 0),
    ("entered", 1, 0),
    ("poll", 2, 0),
    ("window", 3, 0),
    ("fetch", 2, 0),
    ("forward", 3, 0),
    ("backward", 2, 0),
    ("optimizer", 3, 0),
    ("stepped", 2, 0),
    ("averaged", 2, 0),
    ("commit", 3, 0),
    ("save", 1, 0),
    ("gather", 1, 0),
    ("copy", 1, 0),
    ("copied", 1, 0),
    ("writing", 1, 0),
    ("validate", 1, 0),
    ("validate", 3, 0),
    ("validated", 1, 0),
    ("best", 1, 0),
    ("metrics", 1, 0),
    ("epoch", 1, 0),
    ("fetch", 9, 0),
)
AT_THE_END = {"final save": 0, "leave": 0, "ended": -1, "outputs": -1, "statement": -1}

# point and count, where ranks communicate
RANKS = (("join", 1), ("warm-up", 2), ("load", 1), ("poll", 3), ("backward", 4), ("gather", 1), ("validate", 1))

# the same for a training step of one's own, with the points between the steps of its optimizers
OWN_RANKS = (
    *((point, count) for point, count in RANKS if point not in ("join", "warm-up")),
    ("stepped", 4),
    ("optimizer", 5),
    ("averaged", 1),
)


def gan(ranks: int) -> dict[str, Any]:
    """Return changes for a GAN of several ranks; 131 samples divide unequally."""
    several = {"training": {**GAN["training"], "epochs": 2, "batch_size": 131}, "checkpoint": {"interval_steps": 2}}
    return {**GAN, **several, "runtime": {"nproc": ranks}}


def with_ranks(ranks: int, **runtime: Any) -> dict[str, Any]:
    """Return changes for several ranks and a small CNN: with its many tensors, the order of sums over ranks matters."""
    return {
        "model": {"name": "cnn", "params": {"channels": [4, 8]}},
        "training": {"epochs": 2, "batch_size": 132},
        "checkpoint": {"interval_steps": 2},
        "runtime": {"nproc": ranks, **runtime},
    }


def shared(ranks: int, **training: Any) -> dict[str, Any]:
    """Return changes for a sharded model with buffers, generators, odd numbers of rows, a tied weight and EMA."""
    return {
        "model": {"params": {"hidden": 23, "tied": True}},
        "training": {"epochs": 2, "batch_size": 132, "parallel": "fsdp", **training},
        "checkpoint": {"interval_steps": 2},
        "runtime": {"nproc": ranks},
    }


def adapted(folder: str, ranks: int) -> dict[str, Any]:
    """Return changes for adapters beside the frozen weights of a Llama in a folder, with dropout and averages."""
    return {
        "data": {"name": "tests.plugins.small", "params": {"kind": "tokens"}},
        "model": {"name": "transformers", "params": {"path": folder, "lora": {"r": 2, "dropout": 0.1}}},
        "training": {"epochs": 9, "batch_size": 30, "ema_decay": 0.9},  # each stop continues a little later
        "runtime": {"nproc": ranks},
    }


def random_fault(rng: random.Random) -> dict[str, Any]:
    """Return a kill or a stop at a random point within a few steps."""
    point, _, rank = rng.choice([place for place in IN_TRAINING if place[2] == 0])
    return {
        "point": point,
        "count": rng.randint(1, 4),
        "signal": rng.choice(["SIGKILL", "SIGKILL", "SIGTERM"]),
        "rank": rank,
        "target": rng.choice(["self", "self", "launcher", "group"]),
    }


def own_parts(ranks: int) -> dict[str, Any]:
    """Return changes for a run with an optimizer, a schedule, a loss and metrics of the user."""
    return merged(with_ranks(ranks) if ranks > 1 else {}, OWN_PARTS)


def segmentation(ranks: int, epochs: int) -> dict[str, Any]:
    """Return changes for a segmentation whose masks are moved, and read from shards."""
    return {
        "data": {"name": "tests.plugins.scenes", "in_memory": False, "shard_samples": 100},
        "model": {"name": "tests.plugins.pixels"},
        "training": {"epochs": epochs, "class_weights": "balanced", "label_smoothing": 0.1},
        "augment": {"flip_horizontal": 0.5, "shift": 0.2, "rotation": 20, "noise": 0.1},
        "runtime": {"nproc": ranks, "workers": 1},
    }
