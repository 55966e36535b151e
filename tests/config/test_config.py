"""An experiment is read from files and overrides, and every problem in it is told at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.support.repository import ROOT, shipped_experiments
from workflow_lib import config, plan
from workflow_lib.cli import main
from workflow_lib.config import Experiment
from workflow_lib.config.yaml import parse_yaml
from workflow_lib.errors import ConfigError

REPOSITORY = ROOT
SHIPPED = shipped_experiments()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test stands in its own empty folder, outside of any project."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Experiment:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return config.load([Path("x.yaml")], overrides)


def refusal(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(text, *overrides)
    assert refused.value.exit_code == 2
    return str(refused.value).splitlines()


# What is read


def test_only_the_name_is_needed() -> None:
    assert load("name: a") == Experiment(name="a")


def test_an_experiment_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("name: a").training.epochs = 3


def test_a_true_or_false_setting_takes_every_word_of_yaml() -> None:
    text = "name: a\noptimizer: {name: sgd, nesterov: %s}"
    assert [load(text % word).optimizer.nesterov for word in ("true", "yes", "on", "True")] == [True] * 4
    assert [load(text % word).optimizer.nesterov for word in ("false", "no", "off", "False")] == [False] * 4


def test_a_name_with_nothing_after_it_means_the_defaults() -> None:
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


def test_a_file_stands_on_the_one_it_extends(folder: Path) -> None:
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


def test_later_files_lie_on_earlier_ones_and_overrides_on_all() -> None:
    Path("a.yaml").write_text("name: a\nseed: 1\ntraining: {epochs: 1, batch_size: 1}")
    Path("b.yaml").write_text("seed: 2\ntraining: {epochs: 2}")
    experiment = config.load([Path("a.yaml"), Path("b.yaml")], ["training.epochs=3"])
    assert (experiment.seed, experiment.training.epochs, experiment.training.batch_size) == (2, 3, 1)


def test_a_new_variant_drops_what_only_the_old_one_had() -> None:
    Path("base.yaml").write_text(
        "name: a\noptimizer: {name: sgd, lr: 0.1, momentum: 0.5}\nmodel: {name: cnn, params: {channels: [8]}}"
    )
    experiment = load("extends: base.yaml\noptimizer: {name: adamw}\nmodel: {name: mlp}")
    assert (experiment.optimizer.name, experiment.optimizer.lr) == ("adamw", 0.1)
    assert experiment.model == Experiment(name="a").model


def test_files_that_extend_each_other_are_refused() -> None:
    Path("y.yaml").write_text("extends: x.yaml")
    assert "x.yaml -> y.yaml -> x.yaml" in refusal("extends: y.yaml")[0]


def test_a_missing_base_is_named_with_its_line() -> None:
    assert refusal("name: a\nextends: no/where.yaml") == ["x.yaml:2: extends: no file no/where.yaml"]


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
def test_a_file_that_is_no_mapping_is_refused(content: bytes, said: str) -> None:
    Path("x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as refused:
        config.load([Path("x.yaml")])
    assert str(refused.value).startswith("x.yaml")


def test_a_byte_order_mark_is_no_part_of_the_name() -> None:
    Path("x.yaml").write_bytes(b"\xef\xbb\xbfname: a")
    assert config.load([Path("x.yaml")]).name == "a"


def test_a_missing_file_is_the_persons_mistake() -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read: No such file"):
        config.load([Path("nowhere.yaml")])


# Overrides


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
def test_brackets_and_quotes_hold_spaces(override: str) -> None:
    experiment = load("name: a", override)
    assert (experiment.seed, experiment.model.params["hidden"]) == (1, [256, 128])


def test_words_that_a_shell_has_split_already_mean_the_same() -> None:
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
def test_a_wrong_override_is_named_as_it_was_written(override: str, said: str) -> None:
    (line,) = refusal("name: a", override)
    assert line.startswith("set ") or line.startswith("set:")
    assert said in line
    assert override.split("=")[0] in line


# What is refused


def test_all_problems_are_told_at_once_each_with_its_line() -> None:
    lines = refusal(
        "name: a\n"
        "training:\n"
        "  epochs: 0\n"
        "  batchsize: 3\n"
        "optimizer: {lr: fast}\n"
        "model: {params: {dropout: 2, hiden: [1]}}\n"
        "checkpoint: {interval_s: never}\n",
        "runtime.nproc=many",
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["x.yaml:6", "model.params.dropout"],
        ["x.yaml:6", "model.params.hiden"],
        ["x.yaml:5", "optimizer.lr"],
        ["x.yaml:3", "training.epochs"],
        ["x.yaml:4", "training.batchsize"],
        ["x.yaml:7", "checkpoint.interval_s"],
        ["set runtime.nproc=many", "runtime.nproc"],
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainng: {}", "trainng: no such setting; did you mean `training`?; the settings here are: name, labels"),
        ("training: {epochs: 1.5}", "training.epochs: 1.5 is not allowed; allowed: a whole number, at least 1"),
        ("training: {epochs: true}", "training.epochs: true is not a value"),
        ("optimizer: {lr: yes}", "optimizer.lr: 'yes' is not allowed; allowed: a number, above 0"),
        ("optimizer: {lr: -1}", "optimizer.lr: -1 is not allowed; allowed: a number, above 0"),
        ("optimizer: {lr: .inf}", "numbers are finite"),
        ("optimizer: {lr: 'nan'}", "optimizer.lr: 'nan' is not allowed"),
        ("optimizer: {name: adam}", "optimizer: no optimizer 'adam'; did you mean `adamw`?; allowed: adamw, sgd"),
        ("optimizer: {nesterov: true}", "optimizer.nesterov: no such setting for adamw: it belongs to optimizer `sgd`"),
        ("optimizer: {betas: [0.9]}", "optimizer.betas"),
        (
            "optimizer: {betas: [0.9, 2]}",
            "optimizer.betas[1]: 2 is not allowed; allowed: a number, at least 0, below 1",
        ),
        ("optimizer: [1]", "optimizer: [1] is not allowed; allowed: a mapping of settings (lr,"),
        (
            "schedule: {name: cosine, patience: 3}",
            "schedule.patience: no such setting for cosine: it belongs to schedule `plateau`;",
        ),
        (
            "schedule: {name: cosine, factor: 2}",
            "schedule.factor: no such setting for cosine: it belongs to schedule `step` and `plateau`;",
        ),
        ("training: {early_stopping: {metric: val_f1}}", "training.early_stopping.metric: 'val_f1' is not allowed"),
        ("training: {precision: fp8}", "one of fp32, bf16, fp16, tf32"),
        ("model: {name: mpl}", "model.name: no model `mpl`; did you mean `mlp`?"),
        ("training: {hooks: mine.none}", "training.hooks: no module `mine.none` to import for hooks"),
        ("data: {name: digit}", "data.name: no data set `digit`; did you mean `digits`?"),
        ("model: {params: {hidden: [64, 0]}}", "model.params.hidden[1]: 0 is not allowed"),
        ("labels: {year: 2024}", "labels.year: 2024 is not allowed; allowed: text; in quotes it is text"),
        ("runtime: {device: mps}", "runtime.device: 'mps' is not allowed; allowed: auto, cpu, cuda, or cuda:N ("),
        ("runtime: {device: gpu}", "runtime.device: 'gpu' is not allowed; allowed: auto, cpu, cuda, or cuda:N ("),
        ("sweep: {grid: {seed: []}}", "sweep.grid.seed: [] is not allowed; allowed: a list, not empty"),
        ("tune: {}", "tune.space: is missing"),
        ("tune: {space: {optimizer.lr: {type: flaot}}}", "tune.space.optimizer.lr: no type 'flaot'"),
        ("tune: {space: {optimizer.lr: {low: 1}}}", "tune.space.optimizer.lr.high: is missing: largest value"),
    ],
)
def test_a_problem_says_what_and_what_is_allowed(text: str, said: str) -> None:
    (line,) = refusal(f"name: a\n{text}")
    assert line.startswith("x.yaml:2: ")
    assert said in line


LONG, DIGITS = "x" * 5000, "7" * 900


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"seed: {LONG}", "seed: 'xxx"),
        (f"seed: {DIGITS}", "seed: 777"),
        (f"seed: 0x{DIGITS * 5}", "has more than 1,000 digits"),
        (f"optimizer: {{lr: {DIGITS}.5}}", "numbers are finite"),
        (f"optimizer: {{name: {LONG}}}", "no optimizer 'xxx"),
        (f"? {LONG}\n: 1", "no such setting"),
        (f"seed: !{LONG} 1", "the tag !xxx"),
        (f"data: {{name: {LONG}}}", "no data set `xxx"),
        (f"model: {{name: a.{LONG}}}", "no module `a.xxx"),
        (f"training: {{hooks: {LONG}}}", "no module `xxx"),
        (f"extends: {LONG}", "extends: no file xxx"),
        (f"sweep: {{grid: {{seed: [{LONG}]}}}}", "sweep point 0 (seed='xxx"),
        (f"sweep: {{exclude: [{{? {LONG} : 1}}], grid: {{seed: [1]}}}}", "is not swept"),
        (f"tune: {{space: {{? {LONG} : {{low: 0, high: 1}}}}}}", "no such setting"),
    ],
)
def test_what_is_long_is_quoted_by_its_beginning(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan.expand(load(f"name: a\n{text}"))
    (line,) = str(refused.value).splitlines()
    assert said in line
    assert "..." in line
    assert len(line) < 600


def test_a_long_override_is_quoted_by_its_beginning() -> None:
    assert all(len(line) < 400 for line in refusal("name: a", f"seed={LONG}") + refusal("name: a", LONG))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("training.epochs", 1_000_000),
        ("training.batch_size", 1_000_000),
        ("runtime.nproc", 1024),
        ("runtime.hang_timeout_s", 31_536_000.0),
        ("evaluate.bootstrap", 1_000_000),
        ("model.params.hidden", 1_000_000),
        ("export.opset", 25),
    ],
)
def test_a_number_that_must_be_mistyped_is_refused(name: str, most: float) -> None:
    value = "[{}]" if name == "model.params.hidden" else "{}"
    data = "data: {name: npz, params: {path: x}}"  # of unknown size
    ranks = "training.batch_size=1024" if name == "runtime.nproc" else ""
    load(f"name: a\n{data}", ranks, f"{name}={value.format(most)}")
    (line,) = refusal(f"name: a\n{data}", f"{name}={value.format(int(most) + 1)}")
    assert name in line and line.endswith(f"at most {most}") or line.endswith(f"at most {most}, or null")


def test_several_files_are_validated_each_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"good": "name: a", "bad": "name: b\nseed: -1", "empty": "name: c\ndata: {name: npz, params: {path: no}}"}
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text)
    assert main(["validate", "bad.yaml", "empty.yaml", "good.yaml"]) == 2
    told = capsys.readouterr()
    assert told.out == "good.yaml: valid; 1 run\n"
    one, other = told.err.splitlines()
    assert "bad.yaml:2: seed: -1 is not allowed" in one
    assert other.startswith("empty.yaml: data.params.path: no such file: no")
    assert main(["validate", "good.yaml"]) == 0


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "a" * 65, "é"])
def test_the_name_is_safe_as_a_folder(name: str) -> None:
    (line,) = refusal(json.dumps({"name": name}))
    assert "letters, digits" in line


def test_a_missing_name_is_said_with_the_file() -> None:
    assert refusal("seed: 1")[0].startswith("x.yaml:1: name: is missing")


def test_a_problem_in_a_base_names_the_base() -> None:
    Path("base.yaml").write_text("name: a\n\ntraining: {epochs: -1}")
    assert refusal("extends: base.yaml\nseed: 1")[0].startswith("base.yaml:3: training.epochs: -1")


# Paths


def npz(path: str) -> str:
    return json.dumps({"name": "a", "data": {"name": "npz", "params": {"path": path}}})


def test_a_path_inside_the_project_is_kept_relative_to_its_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "Snakefile").touch()
    (folder / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(folder / "deep" / "er")
    spellings = ["data/x.npz", "./data//x.npz", "data/../data/x.npz", str(folder.resolve() / "data/x.npz")]
    assert {load(npz(path)).data.params["path"] for path in spellings} == {"data/x.npz"}


def test_a_path_outside_the_project_stays_whole(folder: Path) -> None:
    (folder / "Snakefile").touch()
    assert load(npz("/far/away/x.npz")).data.params["path"] == "/far/away/x.npz"


def test_the_root_is_the_nearest_folder_with_a_snakefile(folder: Path) -> None:
    (folder / "Snakefile").touch()
    (folder / "a" / "b").mkdir(parents=True)
    assert config.find_root(folder / "a" / "b") == folder.resolve()
    (folder / "Snakefile").unlink()
    with pytest.raises(ConfigError, match="Snakefile"):
        config.find_root(folder / "a")


# Snapshots, template, schema


def test_a_snapshot_loads_to_the_same_experiment(folder: Path) -> None:
    experiment = config.load([REPOSITORY / "config" / "config.yaml"], ["labels.who='Zoë 漢'"])
    path = plan.freeze_experiment(experiment, folder / "work")
    assert config.load([path]) == experiment
    assert path.parent == folder / "work" / "experiments"


def test_a_snapshot_is_written_once(folder: Path) -> None:
    path = plan.freeze_experiment(load("name: a"), folder / "work")
    before = path.stat()
    assert plan.freeze_experiment(load("name: 'a'\nseed: 0"), folder / "work") == path
    assert path.stat().st_ino == before.st_ino
    assert plan.freeze_experiment(load("name: a\nruntime: {threads: 2}"), folder / "work") != path


@pytest.mark.parametrize("text", ['{"name": "a", "name": "b"}', '{"name": "a", "seed": NaN}', '{"name": "a"'])
def test_a_snapshot_is_read_as_strictly_as_yaml(text: str) -> None:
    Path("x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^x\.json: "):
        config.load([Path("x.json")])


def test_the_template_loads_to_the_defaults() -> None:
    assert load(config.template()) == Experiment(name="my-experiment")


def test_the_template_names_every_setting() -> None:
    words = config.template()
    definitions = config.schema()["$defs"]
    settings = {name for d in definitions.values() for name in d.get("properties", {})}
    # The settings of one range of a study stand in an example.
    assert {name for name in settings if f"{name}:" not in words} <= {"step"}


def test_the_commented_parts_of_the_template_are_valid_too() -> None:
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


def test_the_shipped_schema_is_the_one_of_the_sections() -> None:
    shipped = json.loads((REPOSITORY / "config" / "schema.json").read_text(encoding="utf-8"))
    assert shipped == config.schema(), "run: everstep schema > config/schema.json"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_an_editor_finds_no_fault_in_a_shipped_file(path: Path) -> None:
    value, _ = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    jsonschema.Draft202012Validator(config.schema()).validate(value)


def test_an_editor_finds_no_fault_in_the_template_nor_in_sections_left_empty() -> None:
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
def test_an_editor_finds_what_the_loader_refuses(wrong: dict[str, object]) -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    assert not validator.is_valid({"name": "a", **wrong})
    assert validator.is_valid({"name": "a", "extends": "b.yaml", "optimizer": {"name": "sgd", "momentum": 0.5}})


def test_reading_an_experiment_imports_nothing_heavy() -> None:
    code = (
        "import sys, pathlib; from workflow_lib import config, plan\n"
        f"plan.expand(config.load([pathlib.Path({str(SHIPPED[0])!r})]))\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'sklearn', 'optuna', 'snakemake') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["status", "a.yaml"], "everstep status: unknown argument a.yaml. Usage: everstep status [-h] [--json] ("),
        (
            ["status", "--jsn"],
            "everstep status: unknown argument --jsn; did you mean `--json`? Usage: everstep status [",
        ),
        (["validate"], "everstep validate: the following arguments are required: CONFIG. Usage: everstep validate ["),
        (
            ["prove-resume", "a.yaml", "--kills", "x"],
            "everstep prove-resume: argument --kills: invalid int value: 'x'.",
        ),
        (["statu"], "everstep: there is no verb 'statu'; did you mean `status`? Usage: everstep VERB ... ("),
        ([], "everstep: the following arguments are required: VERB. Usage: everstep VERB ... ("),
    ],
)
def test_a_wrong_argument_is_one_line_of_its_verb(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    told = capsys.readouterr()
    assert left.value.code == 2
    assert told.out == ""
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1
