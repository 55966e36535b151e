"""A sweep becomes runs; a run is frozen under its digest, found again by its name, and never changed."""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workflow_lib import config, files, plan
from workflow_lib.config import Experiment
from workflow_lib.errors import ConfigError
from workflow_lib.plan import expansion

TUNE = {"trials": 4, "space": {"optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}}


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate({"name": "a", **sections})


def swept(**sweep: Any) -> list[dict[str, Any]]:
    return [run.swept for run in plan.expand(experiment(sweep=sweep))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Sweeps


def test_no_sweep_is_one_run() -> None:
    (run,) = plan.expand(experiment())
    assert (run.swept, run.config, run.id) == ({}, plan.base(experiment()), f"a-{run.digest[:12]}")


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    assert swept(grid={"optimizer.lr": [1e-3, 1e-2], "seed": [0, 1]}) == [
        {"optimizer.lr": 0.001, "seed": 0},
        {"optimizer.lr": 0.001, "seed": 1},
        {"optimizer.lr": 0.01, "seed": 0},
        {"optimizer.lr": 0.01, "seed": 1},
    ]


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
def test_no_name_depends_on_the_order_of_keys(axes: dict[str, str], data: st.DataObject) -> None:
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


def test_a_zip_goes_side_by_side() -> None:
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


def test_an_excluded_point_is_left_out_in_any_spelling() -> None:
    points = swept(grid={"optimizer.lr": [1e-3, 1e-2], "seed": [0, 1]}, exclude=[{"optimizer.lr": 0.010, "seed": 1}])
    assert len(points) == 3
    assert {"optimizer.lr": 0.01, "seed": 1} not in points


def test_points_with_equal_settings_are_one_run() -> None:
    assert swept(grid={"optimizer.lr": [1e-3, 0.001, 1e-2]}) == [{"optimizer.lr": 0.001}, {"optimizer.lr": 0.01}]
    assert len(swept(list=[{"seed": 0}, {"model.name": "mlp"}, {"model.params.hidden": [128, 64]}])) == 1


def test_a_point_gives_a_run_what_it_says_and_leaves_the_rest() -> None:
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


def test_a_swept_run_is_the_run_written_by_hand() -> None:
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
def test_people_read_the_swept_values_in_the_id(sweep: dict[str, Any], slug: str) -> None:
    (run,) = plan.expand(experiment(name="A", sweep=sweep))
    assert run.id == f"{slug}-{run.digest[:12]}"


def test_an_id_is_safe_and_short_whatever_is_swept() -> None:
    params = {"path": "/a b/../é$(x)/" + "long" * 50 + ".npz"}
    (run,) = plan.expand(experiment(name="Z" * 64, sweep={"list": [{"data.name": "npz", "data.params": params}]}))
    assert set(run.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert len(run.id) <= 77
    (other,) = plan.expand(experiment(sweep={"list": [{"data.name": "npz", "data.params": params}]}))
    assert other.digest == run.digest


def test_two_runs_with_one_short_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "digest_text", lambda text, person: f"{'0' * 12}{len(text):020x}")
    with pytest.raises(ConfigError, match="share the short name 000000000000"):
        plan.expand(experiment(sweep={"grid": {"seed": [1, 22]}}))


# Freezing and finding


def test_a_frozen_run_is_found_by_each_of_its_names(folder: Path) -> None:
    run, other = plan.expand(experiment(sweep={"grid": {"model.name": ["cnn", "mlp"]}}))
    work = folder / "work"
    for each in (run, other):
        assert plan.freeze(each.config, work) == work / "runs" / each.digest / "config.json"
    files.write_json(folder / "best.json", {"run": {"digest": run.digest}})
    for name in (run.id, run.digest, run.digest[:12], run.digest[:20], str(folder / "best.json")):
        assert plan.load_run(name, work) == (run.config, run.digest)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a-000000000000", "no such run"),
        ("tuned", "is not a run"),
        ("abc", "is not a run"),
        ("nowhere.json", "cannot be read"),
        ("empty.json", "does not point to a run"),
        ("torn.json", "does not point to a run"),
    ],
)
def test_a_name_without_a_run_is_explained(folder: Path, name: str, said: str) -> None:
    plan.freeze(plan.base(experiment()), folder / "work")
    (folder / "empty.json").write_text("{}")
    (folder / "torn.json").write_text('{"run": {"dig')
    with pytest.raises(ConfigError, match=said) as refused:
        plan.load_run(name, folder / "work")
    assert name in str(refused.value)


def test_a_frozen_run_is_never_written_again(folder: Path) -> None:
    path = plan.freeze(plan.base(experiment()), folder)
    before = path.stat()
    plan.freeze(plan.base(experiment(data={"shard_samples": 7})), folder)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"stages": {"preprocess": 1, "train": 99}}, {"extra": 1}, {"seed": "x"}]
)
def test_a_frozen_run_that_was_edited_is_refused(folder: Path, change: dict[str, Any]) -> None:
    run = plan.base(experiment())
    path = plan.freeze(run, folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for use in (lambda: plan.freeze(run, folder), lambda: plan.load_run(path.parent.name, folder)):
        with pytest.raises(ConfigError, match=str(path)):
            use()


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '"x"', '{"seed": 0, "da'])
def test_a_frozen_run_that_is_anything_else_is_refused_with_advice(folder: Path, content: str) -> None:
    path = plan.freeze(plan.base(experiment()), folder)
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"^{path}: not .*Remove the file and run the pipeline again") as refused:
        plan.load_run(path.parent.name, folder)
    assert str(refused.value).count(str(path)) == 1


def test_a_run_frozen_before_a_stage_was_bumped_still_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = plan.base(experiment())
    plan.freeze(old, folder)
    monkeypatch.setitem(plan.STAGES, "train", plan.STAGES["train"] + 1)
    new = plan.base(experiment())
    assert plan.run_digest(new) != plan.run_digest(old)
    assert plan.load_run(plan.run_digest(old), folder)[0] == old


@pytest.mark.parametrize("torn", [b"", b'{"seed": 0, "da', b"\xff\x00\xfe", b"[" * 100_000])
def test_a_frozen_run_that_a_power_loss_tore_is_frozen_again(folder: Path, torn: bytes) -> None:
    run = plan.base(experiment())
    path = plan.freeze(run, folder)
    whole = path.read_bytes()
    path.write_bytes(torn)
    plan.freeze(run, folder)
    assert path.read_bytes() == whole


def test_the_runs_of_a_report_are_those_of_the_plan(folder: Path) -> None:
    for tune, tuned in ((None, []), (TUNE, ["tuned"])):
        whole = experiment(sweep={"grid": {"seed": [0, 1]}}, tune=tune)
        plan.write_plan(whole, folder / "work", folder / "plan.json")
        assert plan.reported_runs(folder / "plan.json") == [*(run.id for run in plan.expand(whole)), *tuned]
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a plan"):
        plan.reported_runs(folder / "plan.json")


def _freeze_all(work: str) -> list[str]:
    runs = plan.expand(experiment(sweep={"grid": {"seed": list(range(20))}}))
    return [str(plan.freeze(run.config, Path(work))) for run in runs]


def test_processes_that_freeze_the_same_runs_agree(folder: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        one, two = pool.map(_freeze_all, [str(folder)] * 2, chunksize=1)
    assert one == two
    assert all(plan.load_run(Path(path).parent.name, folder) for path in one)
    assert {len(os.listdir(Path(path).parent)) for path in one} == {1}


# The plan and the study


def test_the_plan_freezes_its_runs_and_its_study(folder: Path) -> None:
    whole = experiment(sweep={"grid": {"seed": [0, 1]}}, tune=TUNE)
    plan.write_plan(whole, folder / "work", folder / "plan.json")
    written = json.loads((folder / "plan.json").read_text())
    assert [run["id"] for run in written["runs"]] == [run.id for run in plan.expand(whole)]
    for run in written["runs"]:
        assert plan.load_run(run["id"], folder / "work")[1] == run["digest"]
    study = written["study"]
    assert study["id"] == plan.study_id(whole) == f"a-{study['digest'][:12]}"
    assert (folder / "work" / "studies" / study["digest"] / "study.json").is_file()


def test_labels_and_machines_do_not_change_the_plan() -> None:
    before = experiment(sweep={"grid": {"seed": [0, 1]}}, tune=TUNE)
    after = experiment(
        sweep={"list": [{"seed": 0}, {"seed": 1}]},
        tune=TUNE,
        labels={"a": "b"},
        runtime={"threads": 2},
        report={"title": "x"},
    )
    assert plan.plan_digest(before, plan.expand(before)) == plan.plan_digest(after, plan.expand(after))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"tune": {**TUNE, "trials": 9}}, True),
        ({"tune": {**TUNE, "name": "other"}}, True),
        ({"labels": {"a": "b"}}, True),
        ({"runtime": {"threads": 2}}, True),
        ({"sweep": {"grid": {"seed": [1]}}}, True),
        ({"tune": {**TUNE, "window": 3}}, False),
        ({"tune": {**TUNE, "seed": 1}}, False),
        ({"tune": {**TUNE, "metric": "val_loss"}}, False),
        ({"tune": {**TUNE, "set": {"training.epochs": 2}}}, False),
        ({"seed": 1}, False),
        ({"model": {"name": "cnn"}}, False),
    ],
)
def test_a_study_is_the_same_as_long_as_its_suggestions_are(change: dict[str, Any], same: bool) -> None:
    before, after = experiment(tune=TUNE), experiment(**{"tune": TUNE, **change})
    assert (plan.study_digest(before) == plan.study_digest(after)) is same


def test_a_trial_has_the_settings_of_the_study_and_the_best_run_has_not() -> None:
    whole = experiment(training={"epochs": 50}, tune={**TUNE, "set": {"training.epochs": 2}})
    trial = plan.apply(plan.tuned_base(whole), {"optimizer.lr": 0.004})
    best = plan.apply(whole, {"optimizer.lr": 0.004})
    assert (trial.training.epochs, best.training.epochs) == (2, 50)
    assert trial.optimizer == best.optimizer
    (hand,) = plan.expand(experiment(training={"epochs": 2}, optimizer={"lr": 0.004}))
    assert plan.run_digest(trial) == hand.digest


def test_a_section_digest_follows_its_section_only() -> None:
    before = experiment()
    after = experiment(evaluate={"bootstrap": 5}, report={"title": "x"})
    assert plan.section_digest(before, "evaluate") != plan.section_digest(after, "evaluate")
    assert plan.section_digest(before, "export") == plan.section_digest(after, "export")


# For people


def test_the_table_shows_each_run_and_what_differs() -> None:
    lines = plan.table(
        experiment(sweep={"list": [{"model.name": "cnn"}, {"model.name": "mlp", "seed": 0}, {"seed": 0}]}, tune=TUNE)
    ).splitlines()
    assert lines[0] == "a: 2 runs, 1 data set (3 points of the sweep; those with equal settings are one run)"
    assert lines[2].split() == ["run", "model.name", "seed"]
    assert lines[3].split()[1:] == ["cnn"]
    assert lines[4].split()[1:] == ["mlp", "0"]
    assert "4 trials, 2 at a time, for val_accuracy" in lines[6]


def test_the_table_shows_the_data_where_it_differs() -> None:
    text = plan.table(experiment(sweep={"grid": {"data.split_seed": [0, 1]}}))
    assert "2 data sets" in text
    assert text.count("digits-") == 2


def test_the_columns_of_a_table_are_told_and_what_would_be_refused(folder: Path) -> None:
    Path("x.csv").write_text("n,c,y\n" + "".join(f"{row * 7 % 11},{'ab'[row % 2]},{row % 2}\n" for row in range(20)))
    data = {"name": "table", "params": {"path": "x.csv", "target": "y"}}
    assert plan.columns(experiment(data=data))[2:] == [
        "  `y`: target, 2 classes (0, 1)",
        "  `n`: number, 0 to 10",
        "  `c`: category, 2 different (a, b)",
    ]
    Path("x.csv").write_text("n,y\n" + "".join(f'"{row},5",{row % 2}\n' for row in range(20)))
    (line,) = plan.columns(experiment(data=data))[2:]
    assert line.startswith("  rejected: ")
    assert "is a number in another notation to a person" in line
    assert plan.columns(experiment()) == []


def test_ten_thousand_runs_expand_in_seconds() -> None:
    whole = experiment(
        sweep={"grid": {"seed": list(range(2500)), "optimizer.lr": [1e-3, 2e-3], "training.epochs": [1, 2]}}
    )
    runs = plan.expand(whole)
    assert len({run.id for run in runs}) == 10_000
    for run in runs[::1111]:
        assert config.digest(config.identity(run.config), "run") == run.digest
        assert run.config == plan.apply(whole, run.swept)
