"""A model by the path of its class or function: its arguments are checked, its outputs adapted, its shapes compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.numpy import load_file

from tests.support.repository import ROOT
from tests.support.trained import Trained
from workflow_lib import config, data, evaluation, export, models, plan
from workflow_lib.cli import main
from workflow_lib.config.run import Model
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.files import read_json
from workflow_lib.plan import user_code
from workflow_lib.results import layout

NET = "tests.plugins.nets:Net"
PARAMS: dict[str, Any] = {"inputs": "data.features", "classes": "data.outputs"}
SPEC = ModelSpec((1, 8, 8), 10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], verb: str, name: str = NET, **settings: Any) -> tuple[int, str]:
    """Return the exit code and the output of a command on an experiment with the model."""
    params = settings.pop("params", PARAMS)
    whole = {"name": "x", "model": {"name": name, "params": params}, **settings}
    Path("x.yaml").write_text(yaml.safe_dump(whole))
    code = main([verb, "x.yaml"])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("returns", ["tensor", "tuple", "mapping", "object"])
def test_the_logits_are_found_in_any_output_and_the_weights_keep_their_names(returns: str) -> None:
    section = Model.model_validate({"name": NET, "params": PARAMS | {"returns": returns, "hidden": [5]}})
    network = models.build(section, SPEC)
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert [*network.state_dict()] == ["blocks.0.0.weight", "blocks.0.0.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"inputs": 64}, "model.params.classes: is missing"),
        (PARAMS | {"classs": 10}, "model.params.classs: no such setting; did you mean `classes`?"),
        (PARAMS | {"classes": "ten"}, "model.params.classes: 'ten' is not allowed; allowed: a whole number"),
        (PARAMS | {"classes": True}, "model.params.classes: true is not a value for this setting"),
        (PARAMS | {"hidden": ["a"]}, "model.params.hidden: 'a' is not allowed; allowed: Sequence[int]"),
        (PARAMS | {"classes": "data.output"}, "`data.output` is no fact of the data; did you mean `data.outputs`?"),
        (PARAMS | {"classes": "data.context"}, "this data has no data.context (tokens in an input); it has: data.outp"),
        (PARAMS | {"classes": 9}, "gives torch.float32 (2, 9) for inputs (2, 1, 8, 8); the data needs floats (2, 10)"),
        (PARAMS | {"inputs": 63}, "with inputs (2, 1, 8, 8) failed: RuntimeError: "),
        (PARAMS | {"hidden": [-1]}, f"model.name: {NET} failed: RuntimeError: "),
        (PARAMS | {"returns": "text"}, f"{NET} gives a str for inputs"),
        (PARAMS | {"returns": "unnamed"}, f"{NET} gives a dict of scores (not of `logits`) for inputs"),
        (PARAMS | {"table": "nowhere.txt"}, "model.params.table: no such file: nowhere.txt"),
        (PARAMS | {"hidden": [10**6, 10**6]}, "1,000,076,000,010 parameters; a training of it needs 16,001.2 GB"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_rejected_before_the_training(
    folder: Path, capsys: pytest.CaptureFixture[str], params: dict[str, Any], message: str
) -> None:
    code, said = told(capsys, "validate", params=params)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("tests.plugins.nets:Nett", {}, "there is no `Nett`; did you mean `Net`?"),
        ("tests.plugins.nots:Net", {}, "no module `tests.plugins.nots` to import for a model"),
        (
            "tests.plugins.nets:make",
            {"widht": 9},
            "argument 'widht' (" + str(ROOT / "tests/plugins"),
        ),
        ("tests.plugins.nets:make", {"returns": "data.output"}, "`data.output` is no fact of the data"),
        ("tests.plugins.nets:ready_made", {"pretrained": True}, "weights that a package loads by itself are not part"),
        ("torch.nn:ReLU", {}, "the result of build() of torch.nn:ReLU has no weights to train"),
        ("tests.plugins.nets:Unfinished", {}, 'is missing the required "forward" function'),
        ("tests.plugins.nets:described", {}, "tests.plugins.nets:described failed: RuntimeError: no metadata"),
        ("builtins:dict", {"a": 1}, "the result of build() of builtins:dict is not a torch.nn.Module"),
    ],
)
def test_another_path_is_rejected_with_what_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, params: dict[str, Any], message: str
) -> None:
    code, said = told(capsys, "validate", name, params=params)
    assert code == 2
    assert message in said


def test_a_model_that_needs_numbers_to_be_built_is_left_to_the_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tests.plugins.nets:ValueDependent"
    code, said = told(capsys, "validate", name, params={})
    assert code == 0
    assert f"only the training can tell whether {name} fits the data" in said
    assert models.build(Model(name=name), SPEC)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_shapes_that_only_the_whole_data_gives_are_left_to_the_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.csv").write_text("a,b,y\n" + "".join(f"{row},{row % 3},{row % 2}\n" for row in range(90)))
    table = {"name": "table", "params": {"path": "t.csv", "target": "y", "task": "classification"}}
    code, said = told(capsys, "validate", data=table)
    assert code == 0, said
    assert "only the training can tell whether tests.plugins.nets:Net fits the data, which is not prepared yet" in said
    manifest = prepared(Path("x.yaml"))
    rest: dict[str, Any] = {"data": table, "training": {"batch_size": 58}}
    assert told(capsys, "validate", **rest) == (0, "x.yaml: valid; 1 run\n")
    said = told(capsys, "plan", **rest)[1]
    assert "training on 58 samples in batches of 58: 1 step per epoch" in said
    assert "parameters; memory on each device about " in said
    wrong = PARAMS | {"inputs": 3}
    assert "with inputs (2, 2) failed: RuntimeError" in told(capsys, "validate", params=wrong, **rest)[1]
    said = told(capsys, "validate", data=table)[1]
    assert "training.batch_size: 64 samples are more than the training split has; allowed: at most 58" in said
    later = manifest.stat().st_mtime_ns + 1
    os.utime(folder / "t.csv", ns=(later, later))  # it may have other columns now
    assert "only the training can tell" in told(capsys, "validate", params=wrong, **rest)[1]


def prepared(file: Path) -> Path:
    """Prepare the data of the only run of an experiment, and return its manifest."""
    experiment = config.load([file])
    (run,) = plan.expand(experiment)
    path = layout.data_manifest(Path("results") / experiment.name, run.data_id)
    data.preprocess(experiment, run.data_id, Path("work"), path)
    return path


@pytest.mark.parametrize(
    ("name", "params", "source"),
    [
        ("mlp", {"hidden": [10**6, 10**6]}, {"name": "digits"}),
        ("text_encoder", {"width": 10**6}, {"name": "labelled_text"}),  # of unknown inputs
    ],
)
def test_validate_rejects_a_model_of_the_package_that_no_device_can_hold(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, params: dict[str, Any], source: dict[str, Any]
) -> None:
    code, said = told(capsys, "validate", name, params=params, data=source)
    assert code == 2
    assert "on each device, more than any has; choose a smaller one" in said


def test_plan_tells_parameters_and_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"params": PARAMS | {"hidden": [1000]}, "training": {"ema_decay": 0.9}}
    code, said = told(capsys, "plan", **settings)
    assert code == 0
    assert "75,010 parameters; memory on each device about " in said
    assert "weights 0.3 MB, gradients 0.3 MB, state of the optimizer 0.6 MB, averages 0.3 MB" in said
    # of each of 64 samples: the inputs, and the outputs of linear layer, ReLU (kept once) and dropout with its mask
    assert "activations of 64 samples 1.0 MB in fp32" in said or "activations of 64 samples 0.8 MB in fp32" in said
    said = told(capsys, "plan", **settings, optimizer={"name": "sgd", "momentum": 0.0})[1]
    assert "state of the optimizer 0.0 MB" in said
    said = told(capsys, "plan", "mlp", params={})[1]
    assert "model mlp " in said
    assert "17,226 parameters" in said


def test_validate_imports_no_torch_for_a_model_of_the_package_and_plan_does(folder: Path) -> None:
    Path("x.yaml").write_text("name: x\n")
    for verb, imported in (("validate", "False"), ("plan", "True")):
        code = (
            f"import sys; from workflow_lib.cli import main; main(['{verb}', 'x.yaml']); print('torch' in sys.modules)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == imported


def planned(**params: Any) -> plan.Run:
    Path("x.yaml").write_text(yaml.safe_dump({"name": "x", "model": {"name": NET, "params": PARAMS | params}}))
    (run,) = plan.expand(config.load([Path("x.yaml")]))
    return run


def test_the_arguments_and_the_content_of_files_among_them_decide_the_identity(folder: Path) -> None:
    (folder / "table.txt").write_text("abc")
    run = planned(table=str(folder / "table.txt"))
    assert run.config.model.params == PARAMS | {"table": "table.txt"}  # no argument that is not given
    assert run.digest != planned().digest != planned(hidden=[12]).digest
    assert user_code.files_of(run.config) == {"table": Path("table.txt")}
    before = user_code.digest(run.config)
    (folder / "table.txt").write_text("abd")
    assert user_code.digest(run.config) != before
    section = run.config.model
    assert models.build(section, SPEC).head.bias.min() > 2  # the file was read


def test_the_code_of_the_module_decides_the_identity_and_comments_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    source = "import torch\ndef net(width=3):\n    return torch.nn.Linear(width, 2)\n"
    digests = []
    for text in (source, f"# a comment\n{source}", source.replace("3", "4")):
        (folder / "by_path_net.py").write_text(text)
        run = run_with("by_path_net:net")
        digests.append(user_code.digest(run))
    assert digests[0] == digests[1] != digests[2]
    assert "torch==" in user_code.of(run_with("torch.nn:Linear"))["model"].texts["torch.nn"]
    del sys.modules["by_path_net"]


def run_with(name: str) -> config.RunConfig:
    params = {"in_features": 2, "out_features": 2} if name.startswith("torch") else {}
    return planned().config.model_copy(update={"model": Model(name=name, params=params)})


EXPERIMENT = f"""
name: digits-demo
model: {{name: {NET}, params: {{inputs: data.features, classes: data.outputs, hidden: [16, 16], returns: object}}}}
training: {{epochs: 2, activation_checkpointing: true}}
checkpoint: {{interval_steps: 1000}}
evaluate: {{bootstrap: 200}}
"""


def test_it_is_trained_evaluated_and_exported(folder: Path, tmp_path: Path) -> None:
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    command = [sys.executable, "-m", "tests.support.trained", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    project = Trained(folder)
    (run,) = project.runs
    place = project.results / "runs" / run
    model = place / "model.safetensors"
    given: dict[str, Any] = {"run": run, "data": project.data, "work": project.work, "model": model}
    evaluation.evaluate(project.experiment, output=place / "evaluation.json", **given)
    export.export(project.experiment, evaluation=place / "evaluation.json", output=place / "export.json", **given)
    assert read_json(place / "export.json")["check"]["split"]["agreement"] == 1.0
    names = ["blocks.0.0.bias", "blocks.0.0.weight", "blocks.1.0.bias", "blocks.1.0.weight", "head.bias", "head.weight"]
    assert sorted(load_file(model)) == names


def test_a_snakemake_that_starts_rejects_a_model_that_does_not_fit(folder: Path) -> None:
    from workflow_lib import snakefile

    Path("x.yaml").write_text(yaml.safe_dump({"name": "x", "model": {"name": NET, "params": PARAMS | {"classes": 9}}}))
    experiment = config.load([Path("x.yaml")])
    with pytest.raises(ConfigError, match="the data needs floats"):
        snakefile.check_models(experiment, plan.expand(experiment))
