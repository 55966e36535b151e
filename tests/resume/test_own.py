"""A loss, an optimizer, a schedule and metrics of the user together are exact, wherever a run of 1 to 3 ranks ends."""

from __future__ import annotations

import csv

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import IN_TRAINING, OWN_PARTS, own_parts
from tests.support.project import FAILED, KILLED, PASS, STOPPED, TERMINATED, differences, merged
from workflow_lib import checkpoint


def test_a_run_interrupted_at_every_point_is_exact(fresh: Fresh, reference: Fresh) -> None:
    """The signals take turns; `scripts/chaos parts` has each of them at every point, also with several ranks."""
    changes = own_parts(1)
    run = fresh(changes)
    for number, (place, count, rank) in enumerate(IN_TRAINING):
        sent = ("SIGTERM", "SIGKILL")[number % 2]
        code = run.attempt({"point": place, "count": count, "signal": sent, "rank": rank})
        if sent == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_stop_in_a_validation_keeps_what_the_metrics_have_seen(fresh: Fresh, reference: Fresh, ranks: int) -> None:
    changes = own_parts(ranks)
    run = fresh(changes)
    assert run.attempt({"point": "validate", "count": 2, "signal": "SIGTERM"}) == STOPPED
    newest = checkpoint.read_newest(run.checkpoints)
    assert newest is not None
    seen = checkpoint.read_tensors(newest, "metrics")
    assert int(seen["streak.seen"].sum()) == newest.about["cursor"]["val_index"] * 33 == 2 * ranks * 33
    assert seen["auroc.preds.0"].shape == (33, 10)
    assert run.attempt({"point": "validate", "count": 1, "signal": "SIGKILL"}) == FAILED
    assert run.verdict(reference(changes)) == PASS


def test_metrics_do_not_depend_on_the_number_of_ranks_that_validate(fresh: Fresh) -> None:
    """One epoch that learns nothing, in which all ranks have the same model."""
    still = {"optimizer": {"lr": 1e-30}, "training": {"epochs": 1, "ema_decay": None}}
    still["model"] = {"name": "mlp", "params": {"hidden": [8]}}
    rows = []
    for ranks in (1, 2, 3):
        run = fresh(merged(merged(OWN_PARTS, {"runtime": {"nproc": ranks}}), still))
        run.finish()
        with run.output.with_name("history.csv").open() as file:
            rows.append(next(csv.DictReader(file)))
    names = ["val_accuracy", "val_auroc", "val_f1_macro", "val_spread", "val_streak"]
    assert list(rows[0])[-5:] == names
    for name in names:
        assert len({row[name] for row in rows}) == 1, name


def test_sharded_models_resume_in_a_validation(fresh: Fresh, reference: Fresh) -> None:
    changes = merged(
        own_parts(2),
        {"training": {"parallel": "fsdp", "ema_decay": None}, "optimizer": {"name": "torch.optim:NAdam"}},
    )
    run = fresh(changes)
    assert run.attempt({"point": "validate", "count": 3, "signal": "SIGTERM"}) == STOPPED
    assert run.verdict(reference(changes)) == PASS
    assert differences(run, reference(changes)) == []
