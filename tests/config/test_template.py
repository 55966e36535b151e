"""The template and the JSON schema describe every setting, and agree with what is read."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from tests.config.conftest import load
from tests.support.repository import ROOT, shipped_experiments
from workflow_lib import config, plan
from workflow_lib.config import Experiment
from workflow_lib.config.yaml import parse_yaml

SHIPPED = shipped_experiments()

pytestmark = pytest.mark.usefixtures("folder")


def test_the_template_loads_to_the_defaults() -> None:
    assert load(config.template()) == Experiment(name="my-experiment")


def test_the_template_names_every_setting() -> None:
    words = config.template()
    definitions = config.schema()["$defs"]
    settings = {name for d in definitions.values() for name in d.get("properties", {})}
    # The settings of one range of a study stand in an example.
    assert {name for name in settings if f"{name}:" not in words} <= {"step"}


def test_the_commented_sections_of_the_template_are_valid() -> None:
    text = config.template()
    for name in ("labels:", "tune:", "  early_stopping:", "  grid:", "  zip:", "  list:", "  exclude:"):
        text = _uncommented(text, name)
    experiment = load(text)
    assert experiment.tune is not None
    assert experiment.tune.trials == 20
    assert experiment.training.early_stopping is not None
    assert len(plan.expand(experiment)) == 2 * 2 * (2 * 2 - 1)


def _uncommented(text: str, head: str) -> str:
    """The text with one commented block made live."""
    indent = head[: len(head) - len(head.lstrip())]
    lines = text.splitlines()
    start = lines.index(f"{indent}# {head.strip()}")
    end = start + 1
    while end < len(lines) and lines[end].startswith(f"{indent}#   "):
        end += 1
    live = [line.replace("# ", "", 1) for line in lines[start:end]]
    return "\n".join([*lines[:start], *live, *lines[end:]])


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = json.loads((ROOT / "config" / "schema.json").read_text(encoding="utf-8"))
    assert shipped == config.schema(), "run: everstep schema > config/schema.json"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_files(path: Path) -> None:
    value, _ = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    jsonschema.Draft202012Validator(config.schema()).validate(value)


def test_the_schema_accepts_the_template_and_empty_sections() -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    validator.validate(parse_yaml(config.template(), "template")[0])
    validator.validate({"name": "a", "optimizer": None, "data": {"name": "npz", "params": None}, "labels": None})
    assert not validator.is_valid({"name": "a", "seed": None})


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": {"momentum": 0.9}},
        {"optimizer": {"name": "sgd", "eps": 1}},
        {"training": {"epochs": 0}},
        {"model": {"params": {"channels": [1]}}},
        {"model": {"name": "cnn", "params": {"hidden": [1]}}},
        {"trainng": {}},
    ],
)
def test_the_schema_rejects_what_the_loader_rejects(wrong: dict[str, object]) -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    assert not validator.is_valid({"name": "a", **wrong})
    assert validator.is_valid({"name": "a", "extends": "b.yaml", "optimizer": {"name": "sgd", "momentum": 0.5}})
