"""`validate` reports what the headers of the data and a single sample show, before anything is prepared."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support.repository import ROOT
from workflow_lib.cli import main

RESNET = {"name": "resnet", "params": {"size": "18", "width": 4}}
SINGLE = {"epochs": 1, "batch_size": 4, "accumulation_steps": 4}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def validate(capsys: pytest.CaptureFixture[str], **settings: Any) -> tuple[int, str]:
    Path("x.yaml").write_text(yaml.safe_dump({"name": "x", **settings}))
    code = main(["validate", "x.yaml"])
    told = capsys.readouterr()
    return code, told.out + told.err


def npz(**changed: np.ndarray | None) -> dict[str, Any]:
    arrays = {
        "train_images": np.zeros((8, 8, 8), np.uint8), "train_labels": np.arange(8) % 2,
        "val_images": np.zeros((4, 8, 8), np.uint8), "val_labels": np.arange(4) % 2,
    }  # fmt: skip
    np.savez("t.npz", **{name: array for name, array in (arrays | changed).items() if array is not None})
    return {"name": "npz", "params": {"path": "t.npz"}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": None}, "the key `train_images` is missing"),
        ({"val_labels": None}, "the key `val_labels` is missing"),
        ({"train_labels": np.zeros((8, 2))}, "shape (8, 2); allowed: (n,) or (n, 1)"),
        ({"train_labels": np.zeros(7)}, "has 7 labels for 8 images"),
        ({"train_labels": np.array(["a"] * 8)}, "has type <U1; allowed: numbers"),
        ({"train_images": np.zeros((8, 3, 8, 8), np.uint8)}, "the channels come last"),
        ({"val_images": np.zeros((4, 9, 8), np.uint8)}, "all images of a file must have one type and shape"),
        ({"valid_images": np.zeros((4, 8, 8), np.uint8)}, "the key `valid_images` belongs to no split"),
    ],
)
def test_keys_shapes_and_types_of_an_npz_file_are_checked(
    capsys: pytest.CaptureFixture[str], changed: dict[str, Any], message: str
) -> None:
    code, told = validate(capsys, data=npz(**changed))
    assert code == 2
    assert f"x.yaml: {Path.cwd()}/t.npz" in told
    assert message in told
    assert "Traceback" not in told


def test_only_the_headers_of_an_npz_file_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    data = npz(train_images=np.full((8, 99, 99), 7, np.uint8), val_images=None, val_labels=None)
    content = bytearray(Path("t.npz").read_bytes())
    content[content.index(b"\x07" * 99) + 50_000] ^= 1
    Path("t.npz").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        np.load("t.npz")["train_images"]
    assert validate(capsys, data=data, training={"batch_size": 4})[0] == 0


def test_settings_are_compared_with_the_shapes_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = npz(val_images=None, val_labels=None)
    code, told = validate(capsys, data=drawn | {"validation_fraction": 0.25, "test_fraction": 0.25})
    assert code == 2
    assert "x.yaml: training.batch_size: 64 samples are more than the training split has" in told
    code, told = validate(capsys, data=npz(), training={"batch_size": 4}, augment={"crop": 8})
    assert code == 2
    assert "x.yaml: augment.crop: 8 pixels can crop an image of 8x8 to padding alone" in told


def test_a_batch_that_leaves_batch_norm_one_value_is_told_before_the_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = {"train_images": np.zeros((8, 4, 4), np.uint8), "val_images": np.zeros((4, 4, 4), np.uint8)}
    code, told = validate(capsys, data=npz(**images), model=RESNET, training=SINGLE)
    assert code == 2
    assert "x.yaml: training.batch_size: a batch of 4 in 4 micro-batches" in told
    assert "leaves 1 sample a process" in told
    assert "Traceback" not in told
    group = {"name": "resnet", "params": {"size": "18", "norm": "group"}}
    assert validate(capsys, data=npz(**images), model=group, training=SINGLE)[0] == 0
    assert validate(capsys, data=npz(**images), model=RESNET, training={**SINGLE, "batch_size": 8})[0] == 0
    large = {name: np.zeros((len(array), 32, 32), np.uint8) for name, array in images.items()}
    assert validate(capsys, data=npz(**large), model=RESNET, training=SINGLE)[0] == 0
    code, told = validate(capsys, data=npz(**images), model=RESNET, training={**SINGLE, "accumulation_steps": 2},
                          runtime={"nproc": 2})  # fmt: skip
    assert code == 2
    assert "on 2 processes" in told


def test_a_user_model_is_checked_with_a_single_sample(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "narrow_norm.py").write_text(
        "from torch import nn\n"
        "from workflow_lib.plugins import Section\n"
        "class Params(Section):\n    '''None.'''\n"
        "def build(params, spec):\n"
        "    return nn.Sequential(nn.Linear(spec.input_shape[0], 4), nn.BatchNorm1d(4), nn.Linear(4, spec.outputs))\n"
    )
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/__init__.py").touch()
    (tmp_path / "narrow_norm.py").rename(tmp_path / "nets/narrow_norm.py")
    (tmp_path / "t.csv").write_text(
        "a,b,y\n" + "".join(f"{row},{row % 3},{'no' if row % 2 else 'yes'}\n" for row in range(40))
    )
    data = {"name": "table", "params": {"path": "t.csv", "target": "y"}}
    settings = {"name": "x", "data": data, "model": {"name": "nets.narrow_norm"}, "training": SINGLE}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "workflow_lib", "validate", "x.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "leaves 1 sample a process" in done.stderr, done.stderr


def test_a_problem_that_only_training_can_find_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    # a data set that says nothing about its size before it is prepared
    data = {"name": "tests.plugins.small", "params": {"kind": "rows"}}
    code, told = validate(capsys, data=data, model=RESNET, training=SINGLE)
    assert code == 0, told
    assert "only the training can tell" in told
    assert "only the training" not in validate(capsys, data=data, model={"name": "mlp"}, training=SINGLE)[1]
    assert "only the training" not in validate(capsys, data=data, model=RESNET, training={"batch_size": 8})[1]


def test_plan_reports_problems_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(yaml.safe_dump({"name": "x", "data": npz(val_labels=None)}))
    assert main(["plan", "x.yaml"]) == 2
    said = capsys.readouterr()
    assert "x: 1 run" in said.out  # the plan is listed first
    assert f"rejected: {Path.cwd()}/t.npz: the key `val_labels` is missing" in said.err


def test_a_metric_by_a_path_is_tried_once_with_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    name = "torchmetrics.regression:MeanSquaredError"
    code, told = validate(capsys, training={"metrics": [name]}, sweep={"seeds": 2, "folds": 2})
    assert (code, told.count(f"training.metrics: {name}: update failed: RuntimeError")) == (2, 1)


OWN_METRICS = """
def several(outputs, targets):
    return 1, 2

def misspelt(outputs, targets):
    return outputs.agmax(1)

def unequal(outputs, targets):
    return (outputs - targets).mean()

def choosy(outputs, targets):
    if len(targets) < 1000:
        raise ValueError("needs 1000 samples")

def top(outputs, targets, k=20):
    return (outputs.topk(k, 1).indices == targets[:, None]).any(1).float().mean()
"""


@pytest.mark.parametrize(
    ("data", "metric", "code", "message"),
    [
        ("digits", "several", 2, "computes a tuple; allowed: a number"),
        ("digits", "misspelt", 2, "no attribute 'agmax'"),
        ("digits", "unequal", 2, "compute failed: RuntimeError: The size of tensor"),
        ("digits", "choosy", 0, "ValueError: needs 1000 samples"),
        ("digits", "top", 2, "k out of range"),
        ("labelled_text", "misspelt", 2, "no attribute 'agmax'"),
        ("table", "misspelt", 2, "no attribute 'agmax'"),
        ("table", "unequal", 0, "this was with made-up samples"),  # its number of classes is not known yet
        ("table", "top", 0, ""),
    ],
)
def test_a_metric_that_is_a_function_is_tried_with_made_up_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    data: str, metric: str, code: int, message: str,
) -> None:  # fmt: skip
    Path("own_metrics.py").write_text(OWN_METRICS)
    Path("t.csv").write_text("a,y\n" + "".join(f"{row},{'abc'[row % 3]}\n" for row in range(60)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    params = {"path": "t.csv", "target": "y"} if data == "table" else {}
    model = {"table": "tabular", "labelled_text": "text_encoder", "digits": "mlp"}[data]
    found, told = validate(
        capsys, data={"name": data, "params": params}, model={"name": model},
        training={"metrics": [{"name": f"own_metrics:{metric}", "maximize": True}], "batch_size": 8},
    )  # fmt: skip
    assert (found, "Traceback" in told) == (code, False), told
    assert message in told
    assert ("training.metrics" in told) is bool(message)


def test_folds_of_a_table_are_listed_and_rejected_once(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "table", "params": {"path": "t.csv", "target": "y"}}
    Path("x.yaml").write_text(
        yaml.safe_dump({"name": "x", "data": data, "model": {"name": "tabular"}, "sweep": {"folds": 3}})
    )
    Path("t.csv").write_text("n,y\n" + "1,a\n2,b\n" * 200)
    assert main(["plan", "x.yaml"]) == 0
    assert (
        capsys.readouterr().out.count(" and 2 other data sets of the same table:\n  `y`: target, 2 classes (a, b)\n")
        == 1
    )
    Path("t.csv").write_text("n;y\n1;a\n")
    assert main(["plan", "x.yaml"]) == 2
    assert capsys.readouterr().err.count("rejected: ") == 1


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        (None, "y", "there is no such file"),
        ("n,y\n1,a\n", "z", "has no column `z`"),
        ("n;y\n1;a\n", "y", 'its only column is named `n;y`: set data.params.delimiter: ";"'),
        ("n\ty\n1\ta\n", "y", 'set data.params.delimiter: "\\t"'),
    ],
)
def test_plan_ends_with_2_if_a_table_is_rejected(
    capsys: pytest.CaptureFixture[str], text: str | None, target: str, said: str
) -> None:
    if text is not None:
        Path("t.csv").write_text(text)
    data = {"name": "table", "params": {"path": "t.csv", "target": target}}
    Path("x.yaml").write_text(yaml.safe_dump({"name": "x", "data": data}))
    assert main(["plan", "x.yaml"]) == 2
    assert said in capsys.readouterr().err


def test_validate_imports_no_torch_for_a_model_without_a_normalisation(tmp_path: Path) -> None:
    settings = {"name": "x", "model": {"name": "mlp"}, "training": {"batch_size": 1}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(settings))
    code = "import sys; from workflow_lib.cli import main; print(main(['validate', 'x.yaml']), "
    command = [sys.executable, "-c", code + "'torch' in sys.modules)"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("0 False\n")


def test_the_plan_shows_the_steps_of_each_training(capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"training.max_steps": [50, 60], "seed": [1, 2]}
    swept = {"training": {"validate_every_steps": 20}, "sweep": {"grid": grid}}
    Path("x.yaml").write_text(yaml.safe_dump({"name": "x", **swept}))
    assert main(["plan", "x.yaml"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training on")]
    where = "training on 1,168 samples in batches of 64: 18 steps per epoch;"
    assert lines == [f"{where} 50 steps and 3 validations in all", f"{where} 60 steps and 3 validations in all"]
