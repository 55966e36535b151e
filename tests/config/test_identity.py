"""Equal settings in any spelling are one run; any other meaning is another; what cannot matter does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from workflow_lib import config, plan
from workflow_lib.config import sweep
from workflow_lib.config.compose import Source, merge
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import canonical
from workflow_lib.config.renamed import with_current_names
from workflow_lib.config.yaml import Origins, parse_yaml
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Section, in_identity
from workflow_lib.plugins.section import ADDED, NOT_IDENTITY

QUICK = settings(max_examples=60, deadline=None)


def fractions(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers between the two, of which some are whole and some written with few digits."""
    return st.one_of(
        st.floats(low, high, exclude_min=True, exclude_max=True),
        st.integers(int(low) + 1, int(high) - 1).map(float) if high - low > 1 else st.nothing(),
        st.integers(1, 999).map(lambda n: low + (high - low) * n / 1000),
    )


# Settings that change the result; all their values are valid with any values of the others.
MATTER: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**32 - 1),
    "data.validation_fraction": fractions(0, 0.25),
    "data.test_fraction": fractions(0, 0.25),
    "data.split_seed": st.integers(0, 99),
    "data.min_class_count": st.integers(1, 20),
    "data.rare_classes": st.sampled_from(["drop", "merge"]),
    "model.params.hidden": st.lists(st.integers(1, 64), max_size=3),
    "model.params.activation": st.sampled_from(["relu", "gelu", "tanh"]),
    "model.params.dropout": fractions(0, 1),
    "optimizer.lr": fractions(0, 10),
    "optimizer.weight_decay": st.just(0.0) | fractions(0, 2),
    "optimizer.betas": st.tuples(fractions(0, 1), fractions(0, 1)).map(list),
    "optimizer.eps": fractions(0, 1),
    "schedule.warmup_epochs": st.just(0.0) | fractions(0, 1),
    "training.epochs": st.integers(1, 500),
    "training.batch_size": st.integers(8, 800),
    "training.accumulation_steps": st.integers(1, 8),
    "training.clip_norm": st.none() | fractions(0, 9),
    "training.label_smoothing": fractions(0, 1),
    "training.focal_gamma": st.just(0.0) | fractions(0, 5),
    "training.class_weights": st.none() | st.lists(fractions(0, 9), min_size=10, max_size=10),
    "training.sampling": st.sampled_from(["shuffled", "balanced"]),
    "training.precision": st.sampled_from(["fp32", "bf16", "fp16", "tf32"]),
    "training.ema_decay": st.none() | fractions(0, 1),
    "training.select_metric": st.sampled_from(["val_loss", "val_accuracy", "train_loss"]),
    "training.early_stopping": st.none() | st.integers(1, 9).map(lambda n: {"patience": n}),
    "training.determinism": st.sampled_from(["strict", "warn", "standard"]),
}
# Settings that do not change the result.
WITHOUT_EFFECT: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z"),
    "labels": st.dictionaries(st.text("abcé", min_size=1), st.text("xyz 漢", max_size=5), max_size=2),
    "data.shard_samples": st.integers(1, 10**6),
    "checkpoint.interval_s": st.just("auto") | fractions(0, 100),
    "checkpoint.interval_steps": st.none() | st.integers(1, 99),
    "checkpoint.keep_last": st.integers(1, 9),
    "runtime.device": st.just("auto"),
    "runtime.threads": st.integers(1, 64),
    "runtime.log_level": st.sampled_from(["debug", "info"]),
    "evaluate.bootstrap": st.integers(0, 99),
    "export.opset": st.none() | st.integers(18, 20),
    "report.title": st.none() | st.text("abc é", max_size=9),
}


def some(table: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for any of the settings of a table."""
    return st.fixed_dictionaries({}, optional=table)


def run_of(text: str, over: str = "{}") -> str:
    """The digest of the one run of an experiment written in YAML, with another on top."""
    sources = [Source(value or {}, Origins(origins)) for value, origins in (parse_yaml(t, "x") for t in (text, over))]
    (run,) = plan.expand(config.validate(merge(*sources), None))
    assert plan.run_digest(run.config) == run.digest
    return run.digest


def written(values: dict[str, Any]) -> str:
    """The settings in the plainest spelling."""
    return json.dumps(sweep.nested({"name": "a", **values}))


def spelled(value: Any, choose: Callable[[list[str]], str]) -> str:
    """The value in one of its spellings."""
    if isinstance(value, dict):
        keys = sorted(value, reverse=choose(["up", "down"]) == "down")
        return "{" + ", ".join(f"{json.dumps(k)}: {spelled(value[k], choose)}" for k in keys) + "}"
    if isinstance(value, list):
        return "[" + " , ".join(spelled(item, choose) for item in value) + "]"
    if value is None:
        return choose(["null", "~", "Null"])
    if isinstance(value, bool):
        return choose([str(value), str(value).lower(), str(value).upper()])
    if isinstance(value, int):
        return choose([str(value), hex(value), f"+{value}", f"{value}.0"])
    if isinstance(value, float):
        whole = [str(int(value))] if value == int(value) else []
        return choose([repr(value), f"{value:.17e}", f"{value:.17E}", f"+{value!r}", *whole])
    return choose([json.dumps(value), f'"{value}"'])


def block(tree: dict[str, Any], choose: Callable[[list[str]], str], indent: str = "") -> str:
    """The tree as YAML of mixed styles and key order, with comments."""
    lines = []
    for key in sorted(tree, reverse=choose(["up", "down"]) == "down"):
        value = tree[key]
        if isinstance(value, dict) and value and choose(["block", "flow"]) == "block":
            lines += [f"{indent}{key}:  # a comment", block(value, choose, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {spelled(value, choose)}")
    return "\n".join(lines)


@QUICK
@given(some(MATTER), st.data())
def test_equal_settings_in_any_spelling_are_the_same_run(values: dict[str, Any], data: st.DataObject) -> None:
    def choose(options: list[str]) -> str:
        return data.draw(st.sampled_from(options))

    text = block(sweep.nested({"name": "a", **values}), choose)
    assert run_of(text) == run_of(written(values)), text


@QUICK
@given(some(MATTER), st.data())
def test_settings_are_the_same_run_in_one_file_or_in_two(values: dict[str, Any], data: st.DataObject) -> None:
    above = {name: value for name, value in values.items() if data.draw(st.booleans())}
    below = {name: data.draw(MATTER[name]) if name in above else value for name, value in values.items()}
    assert run_of(written(below), json.dumps(sweep.nested(above))) == run_of(written(values))


@QUICK
@given(some(MATTER))
def test_omitted_and_explicit_defaults_are_the_same_run(values: dict[str, Any]) -> None:
    experiment = Experiment.model_validate(json.loads(written(values)))
    assert run_of(json.dumps(experiment.model_dump(mode="json"))) == run_of(written(values))


@QUICK
@given(some(MATTER), some(WITHOUT_EFFECT))
def test_settings_without_effect_on_the_result_do_not_change_the_run(
    values: dict[str, Any], aside: dict[str, Any]
) -> None:
    assert run_of(written({**values, **aside})) == run_of(written(values))


@QUICK
@given(some(MATTER), st.sampled_from(sorted(MATTER)), st.data())
def test_any_other_value_is_another_run(values: dict[str, Any], name: str, data: st.DataObject) -> None:
    one = data.draw(MATTER[name])
    two = data.draw(MATTER[name].filter(lambda value: value != one))
    assert run_of(written({**values, name: one})) != run_of(written({**values, name: two}))


# Another value of every setting that changes the result; a new setting must be added here.
OTHER = {
    "seed": 1,
    "data.name": None,
    "data.params": None,
    "data.validation_fraction": 0.16,
    "data.test_fraction": 0.21,
    "data.split_seed": 1,
    "data.min_class_count": 2,
    "data.rare_classes": "merge",
    "model.name": "cnn",
    "model.params": {"dropout": 0.1},
    "optimizer.name": "sgd",
    "optimizer.lr": 0.0010000000000000002,
    "optimizer.weight_decay": 0.02,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.eps": 1e-7,
    "optimizer.momentum": 0.8,
    "optimizer.nesterov": True,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1,
    "schedule.final_fraction": 0.1,
    "schedule.every_epochs": 3,
    "schedule.rise_fraction": 0.2,
    "schedule.start_fraction": 0.2,
    "schedule.factor": 0.2,
    "schedule.patience": 1,
    "training.epochs": 11,
    "training.batch_size": 65,
    "training.accumulation_steps": 2,
    "training.clip_norm": 1,
    "training.label_smoothing": 0.1,
    "training.focal_gamma": 2.0,
    "training.class_weights": "balanced",
    "training.sampling": "balanced",
    "training.precision": "bf16",
    "training.ema_decay": 0.9,
    "training.select_metric": "val_accuracy",
    "training.early_stopping": {},
    "training.determinism": "standard",
    "training.parallel": "fsdp",
    "training.compile": True,
    "training.activation_checkpointing": True,
    "training.hooks": "tests.plugins.watching",
    "augment.flip_horizontal": 0.5,
    "augment.flip_vertical": 0.5,
    "augment.shift": 0.1,
    "augment.rotation": 10,
    "augment.crop": 2,
    "augment.brightness": 0.1,
    "augment.contrast": 0.1,
    "augment.saturation": 0.1,
    "augment.noise": 0.1,
    "augment.mixup": 0.2,
    "augment.cutmix": 1,
}


@pytest.mark.parametrize("name", [name for name, value in OTHER.items() if value is not None])
def test_each_setting_changes_the_digest(name: str) -> None:
    variants: list[dict[str, str]] = [{}, {"optimizer.name": "sgd"}, {"optimizer.name": "muon"}]
    variants += [{"schedule.name": one} for one in ("cosine", "step", "one_cycle", "plateau")]
    different = []
    for variant in [variant for variant in variants if name not in variant]:
        try:
            other = run_of(written({**variant, name: OTHER[name]}))
        except ConfigError:
            continue  # another variant of the section has the setting
        different.append(other != run_of(written(variant)))
    assert different
    assert all(different)


def test_every_setting_of_a_run_is_in_the_list_above() -> None:
    found: set[str] = set()
    for optimizer in ("adamw", "sgd", "lion", "muon"):
        for schedule in ("constant", "cosine", "linear", "step", "one_cycle", "plateau"):
            experiment = Experiment.model_validate(
                {"name": "a", "optimizer": {"name": optimizer}, "schedule": {"name": schedule}}
            )
            for part, value in with_current_names(config.identity(experiment)).items():
                found |= {f"{part}.{key}" for key in value} if isinstance(value, dict) else {part}
    assert found == set(OTHER)


def test_settings_of_another_variant_are_not_in_the_identity() -> None:
    names = set(config.identity(Experiment(name="a").optimizer)) | set(config.identity(Experiment(name="a").schedule))
    assert not names & {"momentum", "nesterov", "factor", "patience", "final_fraction"}


def test_only_the_sections_of_a_run_are_in_the_identity() -> None:
    aside = {name for name in Experiment.model_fields if not in_identity(Experiment, name)}
    assert aside == set(Experiment.model_fields) - set(sweep.RUN_SECTIONS)


class Marked(Section):
    width: int = 3
    workers: int = Field(1, json_schema_extra=NOT_IDENTITY)


def test_a_plugin_may_mark_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from workflow_lib.models import mlp

    monkeypatch.setattr(mlp, "Params", Marked)
    one, two, three = (
        Experiment.model_validate({"name": "a", "model": {"params": params}})
        for params in ({"workers": 1}, {"workers": 2}, {"width": 4})
    )
    assert config.identity(one) == config.identity(two) != config.identity(three)
    assert two.model.params == {"width": 3, "workers": 2}


class Grown(Section):
    width: int = 3
    depth: int = Field(2, json_schema_extra=ADDED)


def test_a_setting_marked_added_counts_only_when_it_is_not_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from workflow_lib.models import mlp

    monkeypatch.setattr(mlp, "Params", Grown)
    left_out, default, deeper = (
        Experiment.model_validate({"name": "a", "model": {"params": params}})
        for params in ({}, {"depth": 2}, {"depth": 3})
    )
    assert config.identity(left_out.model)["params"] == config.identity(default.model)["params"] == {"width": 3}
    assert config.identity(deeper.model)["params"] == {"width": 3, "depth": 3}


def test_a_section_leaves_out_its_added_settings() -> None:
    assert config.identity(Grown()) == {"width": 3}
    assert config.identity(Grown(depth=5)) == {"width": 3, "depth": 5}


# Digests


def test_canonical_json_has_one_text_for_equal_values() -> None:
    assert canonical({"b": 1, "a": [0.1, -0.0, (1, 2)], "é": "漢"}) == '{"a":[0.1,0.0,[1,2]],"b":1,"é":"漢"}'
    assert canonical("-0.0") == '"-0.0"'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, float("-inf")]])
def test_a_value_that_json_cannot_express_is_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        config.digest(value, "x")


def test_digests_of_different_kinds_differ() -> None:
    assert config.digest({}, "run") != config.digest({}, "data")
    assert len(config.digest({}, "run")) == 32


def test_the_digest_of_a_run_is_the_same_on_every_machine_and_day() -> None:
    # Recorded once. It changes only together with a stage, or with a new setting: then every run trains anew.
    assert (plan.STAGES["preprocess"], plan.STAGES["train"]) == (2, 2)
    run = plan.base(Experiment.model_validate({"name": "a"}))
    assert plan.run_digest(run) == "98ee80fdc1337c5fcfa99710d6227f2b"
