"""A loss, an optimizer, a schedule and metrics of the user together are exact, wherever a run of 1 to 3 ranks ends."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import IN_TRAINING, with_ranks
from tests.support.project import FAILED, KILLED, PASS, STOPPED, TERMINATED, differences, merged
from workflow_lib import checkpoint

METRICS: list[Any] = [  # states that are sums, lists of tensors, JSON values, and outputs
    "f1_macro",
    "auroc",
    "tests.plugins.own:Streak",
    {"name": "tests.plugins.own:spread", "params": {"power": 2.0}, "maximize": False},
]
OWN: dict[str, Any] = {
    "optimizer": {"name": "tests.plugins.own:Heavy", "lr": 0.05, "weight_decay": 0.01},
    "schedule": {"name": "tests.plugins.own:noam", "params": {"rise": 0.2}},
    "training": {
        "loss": "tests.plugins.own:smoothed",
        "loss_params": {"power": 1.5, "noise": 0.1},
        "epochs": 9,  # each stop continues a little later
        "batch_size": 33,
        "metrics": METRICS,
        "select_metric": "val_streak",
    },
}


def settings(ranks: int) -> dict[str, Any]:
    return merged(with_ranks(ranks) if ranks > 1 else {}, OWN)


@pytest.mark.parametrize(("ranks", "signals"), [(1, ("SIGKILL",)), (1, ("SIGTERM",)), (2, None), (3, None)])
def test_a_run_interrupted_at_every_point_is_exact(
    fresh: Fresh, reference: Fresh, ranks: int, signals: tuple[str, ...] | None
) -> None:
    changes = settings(ranks)
    run = fresh(changes)
    for number, (place, count, rank) in enumerate(IN_TRAINING):
        if ranks > 1 and place == "averaged":
            continue
        given = signals or (("SIGTERM", "SIGKILL")[(number + ranks) % 2],)
        code = run.attempt({"point": place, "count": count, "signal": given[0], "rank": rank})
        if given[0] == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    assert run.verdict(reference(changes)) == PASS


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_stop_in_a_validation_keeps_what_the_metrics_have_seen(fresh: Fresh, reference: Fresh, ranks: int) -> None:
    changes = settings(ranks)
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
        run = fresh(merged(merged(OWN, {"runtime": {"nproc": ranks}}), still))
        run.finish()
        with run.output.with_name("history.csv").open() as file:
            rows.append(next(csv.DictReader(file)))
    names = ["val_accuracy", "val_auroc", "val_f1_macro", "val_spread", "val_streak"]
    assert list(rows[0])[-5:] == names
    for name in names:
        assert len({row[name] for row in rows}) == 1, name


def test_sharded_models_resume_in_a_validation(fresh: Fresh, reference: Fresh) -> None:
    changes = merged(
        settings(2),
        {"training": {"parallel": "fsdp", "ema_decay": None}, "optimizer": {"name": "torch.optim:NAdam"}},
    )
    run = fresh(changes)
    assert run.attempt({"point": "validate", "count": 3, "signal": "SIGTERM"}) == STOPPED
    assert run.verdict(reference(changes)) == PASS
    assert differences(run, reference(changes)) == []
