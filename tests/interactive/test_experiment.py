"""Experiments in Python, without a pipeline: loading, files, mistakes, and the code of the user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import workflow_lib
from workflow_lib import ConfigError, EverstepError, UserError, config, start
from workflow_lib.config import compose, mapping
from workflow_lib.config.yaml import parse_yaml
from workflow_lib.results import claims
from workflow_lib.results.layout import RESULTS

# YAML has no surrogates and no control characters of Latin-1
ALPHABET = st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, range(0x7F, 0xA0))))
TEXTS = st.text(ALPHABET, max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    start.new_project(folder)
    monkeypatch.chdir(folder)
    return folder


# Mappings and overrides


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_a_mapping_is_written_with_the_values_that_it_has(values: dict[str, Any]) -> None:
    assert parse_yaml(mapping.text_of(values, "heading"), "")[0] == values


def test_a_character_that_yaml_has_not_is_told() -> None:
    with pytest.raises(ConfigError, match="^the mapping: not valid YAML: unacceptable character"):
        mapping.text_of({"labels": {"a": "\x85\x86"}}, "heading")


@given(st.sampled_from(["optimizer.lr", "labels.a", "data.params.path"]), VALUES)
def test_an_override_is_read_with_the_value_that_it_has(name: str, value: Any) -> None:
    (source,) = compose.overrides(mapping.assignments({name: value}))
    found: Any = source.values
    for part in name.split("."):
        found = found[part]
    assert found == value


def test_arrays_tuples_and_paths_are_settings() -> None:
    given = {"a": np.array([0.5, 1.0]), "b": (1, np.int64(2)), "c": Path("d/e"), "f": range(2), "g": np.bool_(True)}
    assert mapping.plain(given) == {"a": [0.5, 1.0], "b": [1, 2], "c": "d/e", "f": [0, 1], "g": True}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"epochs": {1}}}, "^training.epochs: a set cannot be a setting; allowed: "),
        ({"optimizer": {"lr": float("nan")}}, "^optimizer.lr: nan is not allowed; numbers are finite$"),
        ({"labels": {1: "a"}}, "^labels: the key 1 is not a text$"),
        ({"name": "x", "training": {"epoks": 3}}, "^the mapping: training.epoks: "),
        ({"name": "x", "extends": "config/none.yaml"}, "^the mapping: extends: no file config/none.yaml$"),
    ],
)
def test_a_mistake_in_a_mapping_has_one_message(project: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        workflow_lib.load(values)


def test_a_mistake_in_a_file_or_an_override_has_the_message_of_the_command(project: Path) -> None:
    command = [sys.executable, "-m", "workflow_lib", "validate", "config/config.yaml", "--set", "training.epochs=0"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    with pytest.raises(ConfigError, match="allowed: a mapping such as"):
        workflow_lib.load("config/config.yaml", ["training.epochs=0"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as raised:
        workflow_lib.load("config/config.yaml", {"training.epochs": 0})
    assert shown.stderr.strip() == f"everstep validate: {raised.value}"


def test_a_mapping_extends_a_file_wherever_it_is_written(project: Path) -> None:
    loaded = workflow_lib.load({"extends": "config/config.yaml", "name": "mine", "training": {"epochs": 3}})
    path = loaded.save()
    assert path == Path("config/mine.yaml")
    assert "extends: config.yaml" in path.read_text()
    assert config.load([path]).model_dump() == config.Experiment.model_validate(loaded.settings).model_dump()
    assert loaded.settings["optimizer"]["lr"] == 0.001
    assert loaded.settings["training"]["epochs"] == 3


# Files


def test_only_a_file_from_python_is_replaced(project: Path) -> None:
    first = workflow_lib.load({"name": "mine"})
    path = first.save()
    assert workflow_lib.load({"name": "mine", "seed": 1}).save() == path
    assert config.load([path]).seed == 1
    own = "name: mine\nseed: 2\n"
    path.write_text(own)
    with pytest.raises(ConfigError, match="config/mine.yaml: is another experiment file"):
        first.save()
    assert path.read_text() == own
    assert workflow_lib.load({"seed": 2, "name": "mine"}).save() == path  # it says the same
    assert path.read_text() == own


def test_a_file_that_was_edited_is_loaded_again_before_it_runs(project: Path) -> None:
    experiment = workflow_lib.load("config/config.yaml")
    text = Path("config/config.yaml").read_text()
    Path("config/config.yaml").write_text(text.replace("epochs: 10", "epochs: 11"))
    with pytest.raises(ConfigError, match="config/config.yaml has changed since it was loaded"):
        experiment.run()


def test_results_belong_to_one_file(project: Path) -> None:
    claims.acquire(RESULTS, "project", claims.claim_of([Path("config/config.yaml")], []))
    workflow_lib.load("config/config.yaml").plan()
    other = workflow_lib.load({"name": "project", "seed": 4})
    for use in (other.plan, other.status, other.results, other.run):
        with pytest.raises(ConfigError, match="results/project belongs to config/config.yaml"):
            use()
    assert not Path("config/project.yaml").exists()


def test_another_working_directory_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = workflow_lib.load("config/config.yaml")
    planned = experiment.plan()
    monkeypatch.chdir(project / "config")
    for use in (
        planned.status,
        experiment.plan,
        experiment.status,
        experiment.results,
        experiment.run,
        experiment.save,
    ):
        with pytest.raises(ConfigError, match=f"the working directory is {project}/config, but project was loaded in"):
            use()
    with pytest.raises(UserError, match="has no Snakefile: change to the folder of a project"):
        workflow_lib.load({"name": "x"}).run()


# The user's code

NET = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
"""


def test_a_model_of_a_notebooks_cells_is_rejected(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)

    monkeypatch.setattr(sys.modules["__main__"], "Net", Net, raising=False)
    with pytest.raises(ConfigError, match="model `__main__:Net` is defined in a notebook or a script"):
        workflow_lib.load({"name": "x", "model": {"name": "__main__:Net"}})


def test_code_that_is_edited_after_its_import_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])
    Path("edited_nets.py").write_text(NET)
    values = {"name": "x", "model": {"name": "edited_nets:Net"}}
    workflow_lib.load(values)
    Path("edited_nets.py").write_text(f"# a comment changes nothing\n{NET}")
    workflow_lib.load(values)
    Path("edited_nets.py").write_text(NET.replace("64, 10", "64, 11"))
    with pytest.raises(ConfigError, match=r"edited_nets.py has changed since this Python imported it: restart"):
        workflow_lib.load(values)


def test_a_module_of_another_project_is_told(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    values = {"name": "x", "model": {"name": "twin_nets:Net"}}
    start.new_project(tmp_path / "other")
    for folder in (project, tmp_path / "other"):
        (folder / "twin_nets.py").write_text(NET)
    workflow_lib.load(values)
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(ConfigError, match=f"this Python imported `twin_nets` from {project}/twin_nets.py"):
        workflow_lib.load(values)


# Running


def test_ctrl_c_stops_the_pipeline_and_raises_keyboard_interrupt(project: Path) -> None:
    experiment = workflow_lib.load("config/config.yaml")
    before, others = signal.getsignal(signal.SIGINT), {*psutil.Process().children()}  # those of other tests

    def has_started() -> bool:
        with suppress(psutil.NoSuchProcess):
            return any("snakemake" in child.cmdline() for child in {*psutil.Process().children()} - others)
        return False

    def press_ctrl_c() -> None:
        while not has_started():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_ctrl_c)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="^stopped; no finished work is lost. The same command resumes"):
        experiment.run()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert not {*psutil.Process().children()} - others


def test_a_mistake_of_snakemake_is_an_error_of_the_package(project: Path) -> None:
    with pytest.raises(UserError, match="--profile nothing: neither a folder"):
        workflow_lib.load("config/config.yaml").run("nothing")
    experiment = workflow_lib.load("config/config.yaml")
    with ThreadPoolExecutor() as others, pytest.raises(EverstepError, match="--no-such-option"):
        others.submit(experiment.run, arguments=["--no-such-option"]).result()  # without signals: not the main thread


# Output in a notebook and in a terminal


def test_what_a_notebook_shows_is_escaped(project: Path) -> None:
    experiment = workflow_lib.load({"name": "x"}, {"labels.a": "<script>"})
    assert "&lt;script&gt;" in experiment._repr_html_()
    assert "<script>" not in experiment._repr_html_()
    assert "<script>" in repr(experiment)
    grid = workflow_lib.ParameterGrid({"labels.a": ["<script>"]})
    assert "<script>" not in grid._repr_html_()
