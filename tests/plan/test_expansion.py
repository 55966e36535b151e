"""A sweep is expanded to runs, which are named by their settings."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plan.conftest import experiment
from workflow_lib import config, plan
from workflow_lib.errors import ConfigError
from workflow_lib.plan import expansion

pytestmark = pytest.mark.usefixtures("folder")


def swept(**sweep: Any) -> list[dict[str, Any]]:
    return [run.swept for run in plan.expand(experiment(sweep=sweep))]


def test_no_sweep_is_one_run() -> None:
    (run,) = plan.expand(experiment())
    assert (run.swept, run.config, run.id) == ({}, plan.base(experiment()), f"a-{run.digest[:12]}")


def test_a_grid_gives_all_combinations_with_the_last_axis_fastest() -> None:
    assert swept(grid={"optimizer.lr": [1e-3, 1e-2], "seed": [0, 1]}) == [
        {"optimizer.lr": 0.001, "seed": 0},
        {"optimizer.lr": 0.001, "seed": 1},
        {"optimizer.lr": 0.01, "seed": 0},
        {"optimizer.lr": 0.01, "seed": 1},
    ]


def test_seeds_and_folds_repeat_each_point() -> None:
    points = swept(grid={"optimizer.lr": [1e-3, 1e-2]}, seeds=2, folds=2)
    assert len(points) == 8
    assert points[:4] == [
        {"optimizer.lr": 0.001, "data.folds": 2, "data.fold": fold, "seed": seed} for fold in (0, 1) for seed in (0, 1)
    ]
    assert [run.config.seed for run in plan.expand(experiment(seed=7, sweep={"seeds": 3}))] == [7, 8, 9]


def test_the_first_of_several_seeds_is_the_run_without_a_sweep() -> None:
    (alone,) = plan.expand(experiment(seed=7))
    assert plan.expand(experiment(seed=7, sweep={"seeds": 3}))[0].digest == alone.digest


def test_a_fold_is_other_data() -> None:
    runs = plan.expand(experiment(sweep={"folds": 3}))
    assert len({run.data_id for run in runs}) == 3
    assert plan.base(experiment()).data.fold is None


# Names that a sweep may set, each with values; some values are mappings, some keys are inside one another.
AXES: dict[str, list[Any]] = {
    "seed": [0, 1],
    "training.label_smoothing": [0, 0.1],
    "training.clip_norm": [None, 1.0],
    "optimizer": [{"name": "sgd", "momentum": 0.5, "lr": 1e-3}, {"nesterov": True, "name": "sgd"}, {}],
    "model": [{"params": {"hidden": [8], "dropout": 0.5, "activation": "gelu"}, "name": "mlp"}],
    "model.params.dropout": [0.25, 0],
    "data": [{"name": "npz", "params": {"path": "größe/漢 🎲.npz"}, "split_seed": 1}],
}


def shuffled(value: Any, random: Random) -> Any:
    """The value with the keys of every mapping in it in any order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], random) for key in random.sample(list(value), len(value))}
    return [shuffled(item, random) for item in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(AXES)), st.sampled_from(["grid", "zip", "list"]), min_size=1), st.data())
def test_names_do_not_depend_on_the_order_of_keys(axes: dict[str, str], data: st.DataObject) -> None:
    """Neither of those that a person wrote nor of those in the frozen file, which every job reads."""
    of = {kind: [name for name in axes if axes[name] == kind] for kind in ("grid", "zip", "list")}
    sweep = {
        "grid": {name: AXES[name] for name in of["grid"]},
        "zip": {name: AXES[name][:1] for name in of["zip"]},
        "list": [{name: AXES[name][-1] for name in of["list"]}] if of["list"] else [],
    }
    space = {"type": "float", "low": 0, "high": 1}
    study = {"trials": 4, "space": {"schedule.warmup_epochs": space, "augment.mixup": space}}
    plans = []
    for number in range(2):
        written = shuffled({"name": "a", "sweep": sweep, "tune": study}, data.draw(st.randoms(use_true_random=False)))
        path = Path(f"{number}.yaml")
        path.write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True), encoding="utf-8")
        whole = config.load([path])
        frozen = config.load([plan.freeze_experiment(whole, Path("work"))])
        plans += [plan.plan(one, plan.expand(one)) for one in (whole, frozen)]
    assert all(json.dumps(one) == json.dumps(plans[0]) for one in plans)


def test_a_zip_takes_values_in_parallel() -> None:
    assert swept(zip={"training.epochs": [1, 2], "seed": [5, 6]}) == [
        {"training.epochs": 1, "seed": 5},
        {"training.epochs": 2, "seed": 6},
    ]


def test_list_zip_and_grid_multiply() -> None:
    points = swept(
        list=[{"model.name": "cnn"}, {"model.name": "mlp"}], zip={"seed": [1, 2]}, grid={"training.epochs": [1, 2]}
    )
    assert len(points) == 8
    assert points[1] == {"model.name": "cnn", "seed": 1, "training.epochs": 2}


def test_a_point_is_excluded_in_any_spelling_of_its_values() -> None:
    points = swept(grid={"optimizer.lr": [1e-3, 1e-2], "seed": [0, 1]}, exclude=[{"optimizer.lr": 0.010, "seed": 1}])
    assert len(points) == 3
    assert {"optimizer.lr": 0.01, "seed": 1} not in points


def test_points_with_equal_settings_are_one_run() -> None:
    assert swept(grid={"optimizer.lr": [1e-3, 0.001, 1e-2]}) == [{"optimizer.lr": 0.001}, {"optimizer.lr": 0.01}]
    assert len(swept(list=[{"seed": 0}, {"model.name": "mlp"}, {"model.params.hidden": [128, 64]}])) == 1


def test_a_point_changes_only_its_own_settings() -> None:
    base = experiment(training={"epochs": 7}, sweep={"grid": {"optimizer.lr": [0.5], "training.batch_size": [8]}})
    (run,) = plan.expand(base)
    training = base.training.model_copy(update={"batch_size": 8})
    assert run.config.optimizer.lr == 0.5
    assert run.config.training == training
    assert run.config.model == base.model


def test_a_point_may_change_the_model_and_its_params() -> None:
    cnn, mlp = plan.expand(
        experiment(
            model={"name": "mlp", "params": {"hidden": [7]}},
            sweep={"list": [{"model.name": "cnn", "model.params.channels": [3]}, {"model.params.dropout": 0.25}]},
        )
    )
    assert cnn.config.model.params["channels"] == [3]
    assert mlp.config.model.params == {"hidden": [7], "activation": "relu", "dropout": 0.25}


def test_a_point_may_set_a_whole_section() -> None:
    sgd = {"name": "sgd", "momentum": 0.5}
    (run,) = plan.expand(experiment(optimizer={"lr": 0.2, "eps": 1e-3}, sweep={"list": [{"optimizer": sgd}]}))
    assert run.config.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.2,
        "weight_decay": 0.01,
        "momentum": 0.5,
        "nesterov": False,
    }


def test_points_do_not_change_each_other() -> None:
    shared = {"name": "cnn", "params": {"channels": [4]}}
    one, two = plan.expand(
        experiment(sweep={"list": [{"model": shared, "model.params.dropout": 0.5}, {"model": shared}]})
    )
    assert one.config.model.params["dropout"] == 0.5
    assert two.config.model.params["dropout"] == 0.1


def test_a_swept_run_equals_the_run_with_the_same_settings() -> None:
    (run,) = plan.expand(experiment(name="x", sweep={"grid": {"optimizer.name": ["sgd"], "optimizer.lr": [0.1]}}))
    (hand,) = plan.expand(experiment(name="y", optimizer={"name": "sgd", "lr": 0.1}))
    assert run.digest == hand.digest == plan.run_digest(run.config)


def test_runs_share_data_unless_the_data_is_swept() -> None:
    runs = plan.expand(experiment(sweep={"grid": {"data.split_seed": [0, 1], "seed": [0, 1]}}))
    assert [run.data_id for run in runs] == [runs[0].data_id] * 2 + [runs[2].data_id] * 2
    assert runs[0].data_id != runs[2].data_id
    assert runs[0].data_id == plan.data_id(experiment(data={"shard_samples": 10}))
    assert plan.data_settings(runs[2].config)["split_seed"] == 1


@pytest.mark.parametrize(
    ("sweep", "slug"),
    [
        ({"grid": {"optimizer.lr": [1e-3]}}, "a-lr0.001"),
        ({"grid": {"model.name": ["cnn"], "model.params.channels": [[8, 16]]}}, "a-cnn-channels-8-16"),
        ({"grid": {"training.clip_norm": [None]}}, "a-clip_normnull"),
        ({"list": [{"optimizer": {"name": "sgd", "nesterov": True}}]}, "a-sgd-nesterovtrue"),
    ],
)
def test_the_id_of_a_run_has_the_swept_values(sweep: dict[str, Any], slug: str) -> None:
    (run,) = plan.expand(experiment(name="A", sweep=sweep))
    assert run.id == f"{slug}-{run.digest[:12]}"


def test_an_id_is_safe_and_short_whatever_is_swept() -> None:
    params = {"path": "/a b/../é$(x)/" + "long" * 50 + ".npz"}
    (run,) = plan.expand(experiment(name="Z" * 64, sweep={"list": [{"data.name": "npz", "data.params": params}]}))
    assert set(run.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert len(run.id) <= 77
    (other,) = plan.expand(experiment(sweep={"list": [{"data.name": "npz", "data.params": params}]}))
    assert other.digest == run.digest


def test_two_runs_with_the_same_short_digest_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "digest_text", lambda text, person: f"{'0' * 12}{len(text):020x}")
    with pytest.raises(ConfigError, match="share the short name 000000000000"):
        plan.expand(experiment(sweep={"grid": {"seed": [1, 22]}}))


def test_ten_thousand_runs_expand_in_seconds() -> None:
    whole = experiment(
        sweep={"grid": {"seed": list(range(2500)), "optimizer.lr": [1e-3, 2e-3], "training.epochs": [1, 2]}}
    )
    runs = plan.expand(whole)
    assert len({run.id for run in runs}) == 10_000
    for run in runs[::1111]:
        assert config.digest(config.identity(run.config), "run") == run.digest
        assert run.config == plan.apply(whole, run.swept)
