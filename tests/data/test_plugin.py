"""A data set outside of the package: its results are checked, and its code is part of the name of the store."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT
from workflow_lib import config, data, plan
from workflow_lib.errors import UserError

USERS = """
from pathlib import Path

from workflow_lib.plugins import Section


class Params(Section):
    pass


def note(text):
    with Path("asked").open("a") as file:
        file.write(f"{text} ")


def open_source(params, root):
    import numpy as np
    from workflow_lib import data as shards

    def read(split, rows):
        READING

    return shards.Source(
        targets={"train": np.arange(90) % 3}, read=read, classes=("a", "b", "c"), scale=2.0, content="v1"
    )
"""
FLOATS = "return (rows[:, None] * [[0.1, 0.2]]).astype('float32')"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Return a function that writes a user's data set whose `read` has a given body, and returns its settings."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{tmp_path.name}"
    (tmp_path / name).mkdir()

    def write(reading: str, text: str = USERS) -> dict[str, Any]:
        (tmp_path / name / "data.py").write_text(text.replace("READING", reading))
        sys.modules.pop(f"{name}.data", None)
        return {"name": f"{name}.data", "shard_samples": 20}

    return write


def test_a_users_data_set_is_one_file(mine: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    manifest = data.prepare(mine(FLOATS), tmp_path, tmp_path / "work")
    assert (manifest.spec.input_shape, manifest.dtype, manifest.classes) == ((2,), "float32", ("a", "b", "c"))
    inputs = data.load_split(manifest, "train", tmp_path / "work").inputs
    assert inputs.mean(dim=0).abs().max() < 1e-6
    assert (inputs.std(dim=0, correction=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ("return rows[:, None]", "gave int64 of shape"),
        ("return rows.astype('uint8')", "gave uint8 of shape"),
        ("return np.zeros((3, 2), 'uint8')", r"allowed: uint8 or float32 of shape \(1, channels"),
        ("return np.zeros((len(rows), 2 + (rows[0] > 0)), 'uint8')", "all inputs must have one type and shape"),
        ("return np.where(rows == 33, np.nan, 0)[:, None].astype('float32')", "row 33 of `train` has NaN"),
        ("return np.zeros((len(rows), 0), 'uint8')", r"gave uint8 of shape \(1, 0\); allowed"),
        ("return rows[:, None].astype(object)", r"gave object of shape \(1, 1\); allowed"),
        ("return rows[:, None].astype('>f4')", r"gave >f4 of shape \(1, 1\); allowed"),
        ("return [[1.0], [1.0, 2.0]]", "gave a list; allowed: uint8 or float32"),
        ("return None", "gave None; allowed: uint8 or float32"),
        ("return {}['x']", r"read\(\) failed: KeyError: 'x' \(.*data.py:\d+\)"),
    ],
)
def test_invalid_inputs_are_rejected(
    reading: str, message: str, mine: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine(reading)
    with pytest.raises(UserError, match=f"data set `{settings['name']}`: .*{message}"):
        data.prepare(settings, tmp_path, tmp_path / "work", threads=2)
    assert list((tmp_path / "work").rglob("manifest.json")) == []


@pytest.mark.parametrize(("old", "new"), [("shards", "data"), ("checksums", "plugins.checksums")])
def test_names_of_version_0_1_are_importable_with_a_warning(old: str, new: str) -> None:
    sys.modules.pop(f"workflow_lib.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"workflow_lib.{old} is now workflow_lib.{new}; version 0.3 removes"):
        module = importlib.import_module(f"workflow_lib.{old}")
    assert {"shards": "Source", "checksums": "Checksums"}[old] in vars(module)


FAULTY = """
from workflow_lib.plugins import Section


class Params(Section):
    pass


def open_source(params, root):
    import numpy as np
    from workflow_lib.data import Source, from_arrays

    inputs, targets = np.arange(180, dtype="float32").reshape(90, 2), np.arange(90) % 3

    def source(**fields):
        good = {"targets": {"train": targets}, "read": lambda split, rows: inputs[rows], "classes": ("a", "b", "c")}
        return Source(**(good | fields))

    READING
"""


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        ("return source()", ""),
        ("pass", "open_source() gave None; allowed: a Source of workflow_lib.data"),
        ("return inputs", "open_source() gave float32 of shape (90, 2); allowed: a Source"),
        ("raise ValueError('no such\\n  ward')", "open_source() failed: ValueError: no such ward ("),
        ("return source(targets=None)", "Source.targets is given for None; `train` is required"),
        ("return source(targets={'val': targets})", "Source.targets is given for ['val']; `train` is required"),
        ("return source(targets={'train': targets, 'tune': targets})", "Source.targets is given for ['train', 'tune']"),
        ("return source(targets={'train': targets.tolist()})", "the targets of `train` are a list; allowed: an array"),
        ("return source(targets={'train': targets.astype(str)})", "the targets of `train` are <U21 of shape (90,)"),
        ("return source(targets={'train': targets.astype(object)})", "the targets of `train` are object of shape"),
        ("return source(targets={'train': targets * 1j})", "the targets of `train` are complex128 of shape (90,)"),
        (
            "return source(targets={'train': targets[:, None]})",
            "the targets of `train` are int64 of shape (90, 1); allowed with 3",
        ),
        (
            "return source(targets={'train': targets, 'val': targets + 1})",
            "the target in row 2 of `val` is 3; allowed with 3",
        ),
        ("return source(targets={'train': targets[:0]})", "the train split has no sample of class `a`, `b`, `c`"),
        ("return source(classes=range(3))", "Source.classes is range(0, 3); allowed: a tuple of str"),
        ("return source(classes=('a',))", "Source.classes is ('a',); allowed for a classification: at least two names"),
        ("return source(files=['x.csv'])", "Source.files is ['x.csv']; allowed: a tuple of SourceFile"),
        ("return source(content=b'x')", "Source.content is b'x'; allowed: a str"),
        ("return source(scale=0)", "Source.scale is 0; allowed: a number above 0"),
        ("return source(groups=targets[:5])", "Source.groups is int64 of shape (5,); allowed: a number for each of 90"),
        ("return source(read=None)", "read() failed: TypeError: 'NoneType' object is not callable ("),
        ("return source(close=lambda: 1 / 0)", "close() failed: ZeroDivisionError: division by zero ("),
        (
            "return from_arrays(inputs.tolist(), targets, classes='abc')",
            "from_arrays got a list; allowed: inputs of uint8 or",
        ),
        (
            "return from_arrays(inputs * 1j, targets, classes='abc')",
            "from_arrays got complex64 of shape (90, 2); allowed: inp",
        ),
        (
            "return from_arrays(inputs[:, :0], targets, classes='abc')",
            "from_arrays got float32 of shape (90, 0); allowed: inp",
        ),
    ],
)
def test_an_invalid_source_is_rejected(
    opening: str, message: str, mine: Callable[[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine(opening, FAULTY)
    with pytest.raises(UserError) if message else nullcontext() as rejected:
        data.prepare(settings, tmp_path, tmp_path / "work")
    if message:
        said = str(rejected.value)
        assert f"data set `{settings['name']}`: {message}" in said
        assert len(said.splitlines()) == 1


def test_the_log_ends_with_the_error_of_a_data_set_and_its_place(
    mine: Callable[[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine("return {}['ward']", FAULTY)
    (tmp_path / "one.yaml").write_text(f"name: one\ndata: {{name: {settings['name']}}}\n")
    data_id = plan.data_id(config.Data(name=settings["name"]))
    command = ["preprocess", "--experiment", "one.yaml", "--data", data_id, "--output", "data.json"]
    failed = subprocess.run(
        [sys.executable, "-m", "workflow_lib", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    file = tmp_path / settings["name"].replace(".", "/")
    line = 1 + (lines := file.with_suffix(".py").read_text().splitlines()).index("    return {}['ward']")
    assert len(lines) >= line
    assert failed.returncode == UserError.exit_code
    said = f"data set `{settings['name']}`: open_source() failed: KeyError: 'ward' ({file}.py:{line})"
    assert failed.stderr.splitlines()[-1] == f"everstep preprocess: {said}"
    assert "Traceback (most recent call last)" in failed.stderr


def test_a_constant_channel_is_only_shifted(mine: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    settings = mine("return np.stack([0 * rows + 7, rows], axis=1).astype('uint8')")
    manifest = data.prepare(settings, tmp_path, tmp_path / "work")
    assert (manifest.mean[0], manifest.std[0]) == (3.5, 1.0)
    assert data.load_split(manifest, "val", tmp_path / "work").inputs[:, 0].unique().tolist() == [0]


def test_changed_code_of_a_data_set_never_reuses_shards(mine: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    first = data.prepare(mine(FLOATS), tmp_path, tmp_path / "work")
    second = data.prepare(mine(FLOATS.replace("0.1", "0.3")), tmp_path, tmp_path / "work")
    third = data.prepare(mine(FLOATS.replace("rows[", "rows[:][")), tmp_path, tmp_path / "work")
    assert len({first.store, second.store, third.store}) == 3
    assert first.digest == third.digest != second.digest


def test_changed_code_of_an_imported_module_never_reuses_shards(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = mine("from .helper import values; return values(rows)")
    helper = tmp_path / settings["name"].partition(".")[0] / "helper.py"
    manifests = []
    for factor in ("0.1", "0.3"):
        helper.write_text(f"def values(rows):\n    {FLOATS.replace('0.1', factor)}\n")
        sys.modules.pop(f"{helper.parent.name}.helper", None)
        manifests.append(data.prepare(settings, tmp_path, tmp_path / "work"))
        assert data.prepare(settings, tmp_path, tmp_path / "work") == manifests[-1]
    assert manifests[0].store != manifests[1].store
    assert manifests[0].digest != manifests[1].digest


def test_only_the_rows_of_a_shard_are_in_memory(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data.prepare(mine(f"note(len(rows)); {FLOATS}"), Path(), Path("work"))
    assert max(map(int, Path("asked").read_text().split())) == 20


DEADLY = """import os, signal
        if rows[0] > 40 and not Path('asked').exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if Path('asked').exists():
            note('read')
        """


def test_a_killed_preparation_costs_one_shard(
    mine: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = mine(DEADLY + FLOATS)
    code = f"import pathlib, workflow_lib.data as s; s.prepare({settings}, pathlib.Path(), pathlib.Path('work'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    died = subprocess.run([sys.executable, "-c", code], env=environment)
    assert died.returncode == -signal.SIGKILL
    done = len(list(Path("work").rglob("*.safetensors")))
    assert done >= 1
    assert not list(Path("work").rglob("manifest.json"))

    Path("asked").touch()
    manifest = data.prepare(settings, Path(), Path("work"))
    probe, *made = Path("asked").read_text().split()
    assert len(made) == len(manifest.shards) - done
