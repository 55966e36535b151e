"""A segmentation that is killed or stopped anywhere ends with the bits of an uninterrupted one, for up to 3 ranks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import IN_TRAINING
from tests.support.project import FAILED, KILLED, PASS, STOPPED, TERMINATED


def segmentation(ranks: int, epochs: int) -> dict[str, Any]:
    """Return changes for a segmentation whose masks are moved, and read from shards."""
    return {
        "data": {"name": "tests.plugins.scenes", "in_memory": False, "shard_samples": 100},
        "model": {"name": "tests.plugins.pixels"},
        "training": {"epochs": epochs, "class_weights": "balanced", "label_smoothing": 0.1},
        "augment": {"flip_horizontal": 0.5, "shift": 0.2, "rotation": 20, "noise": 0.1},
        "runtime": {"nproc": ranks, "workers": 1},
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_segmentation_interrupted_once_at_every_point_is_exact(
    fresh: Fresh, reference: Fresh, signal: str, ranks: int
) -> None:
    # a stop saves its step, so that each attempt comes further than one that is killed
    changes = segmentation(ranks, epochs=3 if signal == "SIGKILL" else 9)
    run = fresh(changes)
    for place, number, rank in IN_TRAINING:
        if (place, number) == ("validate", 3) and ranks > 1:
            continue  # each of several ranks has fewer batches of the validation
        code = run.attempt({"point": place, "count": number, "signal": signal, "rank": rank})
        if signal == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    finished = reference(changes)
    assert run.verdict(finished) == PASS
    header, first, *_, last = finished.output.with_name("history.csv").read_text().splitlines()
    assert header == "epoch,step,lr,train_loss,val_loss,val_mean_iou"
    assert float(last.rpartition(",")[2]) > float(first.rpartition(",")[2])
