"""An experiment is read from files and overrides, which are merged into one tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.conftest import load, problems
from tests.support.repository import ROOT, shipped_experiments
from workflow_lib import config
from workflow_lib.cli import main
from workflow_lib.config import Experiment
from workflow_lib.errors import ConfigError

SHIPPED = shipped_experiments()

pytestmark = pytest.mark.usefixtures("folder")


def test_only_the_name_is_needed() -> None:
    assert load("name: a") == Experiment(name="a")


def test_an_experiment_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("name: a").training.epochs = 3


def test_a_boolean_setting_accepts_the_words_of_yaml_1_1() -> None:
    text = "name: a\noptimizer: {name: sgd, nesterov: %s}"
    assert [load(text % word).optimizer.nesterov for word in ("true", "yes", "on", "True")] == [True] * 4
    assert [load(text % word).optimizer.nesterov for word in ("false", "no", "off", "False")] == [False] * 4


def test_an_empty_section_means_the_defaults() -> None:
    text = "name: a\nlabels:\ntraining:\nmodel:\n  params:\noptimizer:\nsweep:\n  grid:\ntune:\n"
    assert load(text) == Experiment(name="a")


def test_the_params_of_a_plugin_are_filled_with_its_defaults() -> None:
    assert load("name: a\nmodel: {params: {dropout: 0.5}}").model.params == {
        "hidden": [128, 64],
        "activation": "relu",
        "dropout": 0.5,
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_loads(path: Path) -> None:
    assert config.load([path]).name == ("digits" if path.stem == "config" else path.stem)


# Files on files


def test_a_file_is_merged_over_the_one_it_extends(folder: Path) -> None:
    (folder / "base").mkdir()
    Path("base/base.yaml").write_text(
        "extends: root.yaml\ntraining: {epochs: 3, batch_size: 8}\nexport: {batch_sizes: [1, 2, 3]}"
    )
    Path("base/root.yaml").write_text("name: root\nseed: 5\ntraining: {epochs: 1, accumulation_steps: 2}")
    experiment = load("extends: base/base.yaml\nname: top\ntraining: {batch_size: 16}\nexport: {batch_sizes: [9]}")
    training = experiment.training
    assert (experiment.name, experiment.seed) == ("top", 5)
    assert (training.epochs, training.batch_size, training.accumulation_steps) == (3, 16, 2)
    assert experiment.export.batch_sizes == [9]


def test_later_files_override_earlier_ones_and_overrides_come_last() -> None:
    Path("a.yaml").write_text("name: a\nseed: 1\ntraining: {epochs: 1, batch_size: 1}")
    Path("b.yaml").write_text("seed: 2\ntraining: {epochs: 2}")
    experiment = config.load([Path("a.yaml"), Path("b.yaml")], ["training.epochs=3"])
    assert (experiment.seed, experiment.training.epochs, experiment.training.batch_size) == (2, 3, 1)


def test_another_variant_drops_settings_that_only_the_former_had() -> None:
    Path("base.yaml").write_text(
        "name: a\noptimizer: {name: sgd, lr: 0.1, momentum: 0.5}\nmodel: {name: cnn, params: {channels: [8]}}"
    )
    experiment = load("extends: base.yaml\noptimizer: {name: adamw}\nmodel: {name: mlp}")
    assert (experiment.optimizer.name, experiment.optimizer.lr) == ("adamw", 0.1)
    assert experiment.model == Experiment(name="a").model


def test_files_that_extend_each_other_are_rejected() -> None:
    Path("y.yaml").write_text("extends: x.yaml")
    assert "x.yaml -> y.yaml -> x.yaml" in problems("extends: y.yaml")[0]


def test_a_missing_base_is_named_with_its_line() -> None:
    assert problems("name: a\nextends: no/where.yaml") == ["x.yaml:2: extends: no file no/where.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"- a\n- b\n", "not a list"),
        (b"word", "not a single value"),
        (b"name: \xff\xfe", "not UTF-8"),
        (b"name: a\nname: b\n", "lines 1 and 2"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_rejected(content: bytes, said: str) -> None:
    Path("x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as rejected:
        config.load([Path("x.yaml")])
    assert str(rejected.value).startswith("x.yaml")


def test_a_byte_order_mark_is_ignored() -> None:
    Path("x.yaml").write_bytes(b"\xef\xbb\xbfname: a")
    assert config.load([Path("x.yaml")]).name == "a"


def test_a_missing_file_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read: No such file"):
        config.load([Path("nowhere.yaml")])


def test_null_clears_a_mapping_and_an_empty_one_is_said_to_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    text = "name: a\ntraining: {loss: torch.nn:CrossEntropyLoss, loss_params: {label_smoothing: 0.1}}"
    assert load(text, "training.loss_params=null").training.loss_params == {}
    assert load(text, "training.step_params={}", "model={name: cnn, params: {}}").training.loss_params
    assert not caplog.records
    assert load(text, "training.loss_params={}").training.loss_params == {"label_smoothing": 0.1}
    assert [record.getMessage() for record in caplog.records] == [
        "set training.loss_params={}: training.loss_params: {} changes nothing, since mappings are merged;"
        " null clears it"
    ]


def test_overrides_are_yaml_separated_by_spaces() -> None:
    experiment = load("name: a", "training.epochs=20 seed=7 optimizer.lr=1e-2", "training.clip_norm=null")
    assert (experiment.training.epochs, experiment.seed, experiment.optimizer.lr) == (20, 7, 0.01)
    assert experiment.training.clip_norm is None


@pytest.mark.parametrize(
    "override",
    [
        "model.params.hidden=[256, 128] seed=1",
        "seed=1 model.params.hidden=[256,128]",
        'seed=1 model.params.hidden="[256, 128]"',
        "model={name: mlp, params: {hidden: [256, 128]}} seed=1",
    ],
)
def test_values_in_brackets_and_quotes_may_have_spaces(override: str) -> None:
    experiment = load("name: a", override)
    assert (experiment.seed, experiment.model.params["hidden"]) == (1, [256, 128])


def test_overrides_that_a_shell_has_split_mean_the_same() -> None:
    assert load("name: a", "report.title='a b' seed=1") == load("name: a", 'report.title="a b"', "seed=1")


def test_dotted_names_of_a_sweep_are_one_key() -> None:
    experiment = load("name: a", "sweep.grid.optimizer.lr=[1e-3, 1e-2] labels.a.b=c")
    assert experiment.sweep.grid == {"optimizer.lr": [0.001, 0.01]}
    assert experiment.labels == {"a.b": "c"}


def test_an_override_of_a_tuned_range_reaches_it() -> None:
    text = "name: a\ntune: {space: {optimizer.lr: {type: float, low: 1e-3, high: 1e-2}}}"
    experiment = load(text, "tune.space.optimizer.lr.high=1 tune.set.training.epochs=2")
    assert experiment.tune is not None
    assert experiment.tune.space["optimizer.lr"].high == 1.0
    assert experiment.tune.set == {"training.epochs": 2}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoch=3", "did you mean `epochs`"),
        ("trainig.epochs=3", "did you mean `training`"),
        ("epochs", "not of the form"),
        ("=3", "not of the form"),
        ("a..b=3", "not of the form"),
        ("seed='1 training.epochs=2", "close the quotes"),
        ("seed=[1", "not valid YAML"),
        ("seed=.nan", "finite"),
        ("training.epochs=0", "at least 1"),
        ("training=5", "a mapping of settings"),
    ],
)
def test_a_wrong_override_is_quoted_as_it_was_written(override: str, said: str) -> None:
    (line,) = problems("name: a", override)
    assert line.startswith("set ") or line.startswith("set:")
    assert said in line
    assert override.split("=")[0] in line


def npz(path: str) -> str:
    return json.dumps({"name": "a", "data": {"name": "npz", "params": {"path": path}}})


def test_a_path_inside_the_project_is_kept_relative_to_it(folder: Path) -> None:
    (folder / "Snakefile").touch()
    spellings = ["data/x.npz", "./data//x.npz", "data/../data/x.npz", str(folder.resolve() / "data/x.npz")]
    assert {load(npz(path)).data.params["path"] for path in spellings} == {"data/x.npz"}


def test_a_pipeline_in_a_folder_of_the_project_finds_an_absolute_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "Snakefile").touch()
    (folder / "x.csv").write_text("a,class\n" + "".join(f"{row},{'xy'[row % 2]}\n" for row in range(40)))
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")  # as `snakemake --directory inner` does
    absolute = str(folder.resolve() / "x.csv")
    Path("x.yaml").write_text(f"name: a\ndata: {{name: table, params: {{path: {absolute}, target: class}}}}")
    assert load(Path("x.yaml").read_text()).data.params["path"] == absolute
    assert main(["validate", "x.yaml"]) == 0
    assert f"relative to this folder; the project is {folder.resolve()}" in capsys.readouterr().err
    Path("work").mkdir()  # a pipeline has run here
    assert main(["validate", "x.yaml"]) == 0
    assert "relative" not in capsys.readouterr().err


def test_a_path_outside_the_project_stays_absolute(folder: Path) -> None:
    (folder / "Snakefile").touch()
    assert load(npz("/far/away/x.npz")).data.params["path"] == "/far/away/x.npz"


def test_reading_an_experiment_imports_nothing_heavy() -> None:
    code = (
        "import sys, pathlib; from workflow_lib import config, plan\n"
        f"plan.expand(config.load([pathlib.Path({str(SHIPPED[0])!r})]))\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'sklearn', 'optuna', 'snakemake') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
