"""A segmentation that is killed or stopped anywhere ends with the bits of an uninterrupted one, for up to 3 ranks."""

from __future__ import annotations

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import IN_TRAINING, segmentation
from tests.support.project import FAILED, KILLED, PASS, STOPPED, TERMINATED


@pytest.mark.parametrize(("ranks", "signal"), [(1, "SIGTERM"), (2, "SIGKILL"), (3, "SIGTERM")])
def test_a_segmentation_interrupted_once_at_every_point_is_exact(
    fresh: Fresh, reference: Fresh, signal: str, ranks: int
) -> None:
    """`scripts/chaos masks` has each signal for each number of ranks."""
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
