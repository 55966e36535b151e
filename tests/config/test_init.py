"""`model.init.from`: an experiment file stands for its only run, by an id that does not depend on the file's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from workflow_lib import config, plan
from workflow_lib.cli import main
from workflow_lib.config.init import Init
from workflow_lib.errors import ConfigError
from workflow_lib.plan import user_code

PRETRAIN = "name: pre\nmodel: {params: {hidden: [8]}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    write("pre.yaml", PRETRAIN)
    return tmp_path


def write(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


def run_of(name: str, text: str) -> plan.Run:
    (run,) = plan.expand(config.load([write(name, text)]))
    return run


def start(source: str, more: str = "") -> str:
    return f"name: fine\nmodel: {{init: {{from: {source}{more}}}}}\n"


def test_a_file_is_replaced_by_the_id_of_its_run() -> None:
    pre = run_of("pre.yaml", PRETRAIN)
    fine = run_of("fine.yaml", start("pre.yaml"))
    assert fine.config.model.init.run == pre.id
    assert fine.config.model.init.file is None
    assert plan.sources_of(fine.config) == {"model.init.from": pre.id}
    first = plan.trained_first([fine.config], {}, Path("work"))
    assert [(run.id, run.digest, run.config) for run in first.values()] == [(pre.id, pre.digest, pre.config)]
    assert plan.trained_first([fine.config], {pre.id: pre}, Path("work")) == {}


def test_an_argument_of_a_training_step_names_a_run_in_the_same_way() -> None:
    def student(source: str, name: str = "student") -> plan.Run:
        params = f"{{teacher: {source}, hidden: [8]}}"
        step = f'training: {{step: "tests.plugins.distilling:Step", step_params: {params}}}'
        return run_of("student.yaml", f"name: {name}\n{step}\n")

    pre, taught = run_of("pre.yaml", PRETRAIN), student("pre.yaml")
    assert plan.sources_of(taught.config) == {"training.step_params.teacher": pre.id}
    assert user_code.files_of(taught.config) == {}
    assert [*plan.trained_first([taught.config], {}, Path("work"))] == [pre.id]
    assert student(pre.id).digest == taught.digest
    weights = [user_code.digest(taught.config, {"training.step_params.teacher": digest}) for digest in "ab"]
    assert weights[0] != weights[1]
    write("pre.yaml", PRETRAIN.replace("name: pre", "name: other"))
    assert student("pre.yaml").digest == taught.digest
    write("pre.yaml", PRETRAIN + "seed: 1\n")
    assert student("pre.yaml").digest != taught.digest
    with pytest.raises(ConfigError, match=r"step_params: gone\.yaml: cannot be read"):
        student("gone.yaml")


def test_the_digest_depends_on_the_settings_of_the_source_and_not_on_its_name() -> None:
    fine = run_of("fine.yaml", start("pre.yaml"))
    write("pre.yaml", PRETRAIN.replace("name: pre", "name: other"))
    assert run_of("fine.yaml", start("pre.yaml")).digest == fine.digest
    write("pre.yaml", PRETRAIN + "seed: 1\n")
    assert run_of("fine.yaml", start("pre.yaml")).digest != fine.digest
    assert run_of("plain.yaml", "name: fine\n").digest != fine.digest


def test_a_frozen_experiment_does_not_read_the_file_again() -> None:
    experiment = config.load([write("fine.yaml", start("pre.yaml"))])
    frozen = plan.freeze_experiment(experiment, Path("work"))
    write("pre.yaml", PRETRAIN + "seed: 1\n")
    assert [run.id for run in plan.expand(config.load([frozen]))] == [run.id for run in plan.expand(experiment)]


def test_a_source_may_have_a_source_and_a_point_of_a_sweep_its_own() -> None:
    write("fine.yaml", start("pre.yaml"))
    (third,) = plan.expand(config.load([write("third.yaml", start("fine.yaml").replace("fine", "third", 1))]))
    first = plan.trained_first([third.config], {}, Path("work"))
    assert [run.id.rpartition("-")[0] for run in first.values()] == ["fine", "pre"]
    swept = "name: swept\nsweep: {list: [{seed: 1}, {model.init.from: pre.yaml}, {model.init.from: fine.yaml}]}\n"
    runs = plan.expand(config.load([write("swept.yaml", swept)]))
    assert [run.config.model.init.run is None for run in runs] == [True, False, False]
    assert len(plan.trained_first([run.config for run in runs], {}, Path("work"))) == 2


def test_the_plan_names_what_is_trained_first_and_freezes_it() -> None:
    pre = run_of("pre.yaml", PRETRAIN)
    experiment = config.load([write("fine.yaml", start("pre.yaml"))])
    plan.write_plan(experiment, Path("work"), Path("plan.json"))
    assert plan.load_run(pre.id, Path("work"))[0] == pre.config
    assert plan.plan(experiment, plan.expand(experiment))["trained_first"] == [{"id": pre.id, "digest": pre.digest}]
    assert f"trained first, since runs use their weights:\n  {pre.id}" in plan.table(experiment)


def test_a_run_that_nobody_knows_is_rejected() -> None:
    fine = run_of("fine.yaml", start("gone-0123456789ab"))
    with pytest.raises(ConfigError, match=r"model\.init\.from: gone-0123456789ab: no such run .* experiment file can"):
        plan.trained_first([fine.config], {}, Path("work"))


def test_paths_in_the_project_are_relative(folder: Path) -> None:
    for text in ("weights/a.safetensors", "./weights/../weights/a.safetensors", str(folder / "weights/a.safetensors")):
        init = run_of("fine.yaml", start(text)).config.model.init
        assert (init.file, init.run) == (Path("weights/a.safetensors"), None)


def test_settings_without_a_source_and_defaults_change_no_digest() -> None:
    assert run_of("a.yaml", "name: a\n").digest == run_of("a.yaml", "name: a\nmodel: {init: {from: null}}\n").digest
    assert Init() == Init.model_validate({"from": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (start("fine.yaml"), "the experiments start from each other: fine.yaml -> fine.yaml"),
        (start("a.yaml"), "start from each other: a.yaml -> b.yaml -> a.yaml"),
        (start("swept.yaml"), "swept.yaml has a sweep, so it is not one run"),
        (start("study.yaml"), "study.yaml has a study, .* results/s/runs/tuned/model.safetensors"),
        (start("wrong.yaml"), r"fine.yaml:2: model.init.from: wrong.yaml:2: training.epochs: 0 is not allowed"),
        (start("none.yaml"), "none.yaml: cannot be read"),
        ("name: fine\nmodel: {init: {map: {a: b}}}\n", "model.init.map: is about weights to start from"),
        ("name: fine\nmodel: {init: {strict: false}}\n", "model.init.strict: is about weights to start from"),
        ("name: fine\nmodel: {init: {lr_scale: {a: 0}}}\n", "model.init.lr_scale.a: 0 is not allowed"),
    ],
)
def test_wrong_sources_are_rejected(text: str, message: str) -> None:
    write("a.yaml", start("b.yaml"))
    write("b.yaml", start("a.yaml"))
    write("swept.yaml", "name: s\nsweep: {grid: {seed: [1, 2]}}\n")
    write("study.yaml", "name: s\ntune: {space: {optimizer.lr: {low: 0.1, high: 0.2}}}\n")
    write("wrong.yaml", "name: s\ntraining: {epochs: 0}\n")
    with pytest.raises(ConfigError, match=message):
        config.load([write("fine.yaml", text)])


def test_the_example_of_the_page_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline of such an experiment is tested in tests/workflow/test_finetuning.py."""
    page = (ROOT / "docs/training.md").read_text()
    section = page[page.index("## Fine-tuning") : page.index("- **A run**")]
    Path("config").mkdir()
    files = re.findall(r"^`([^`\n]+)`:\n\n```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    for name, text in files:
        write(name, text)
    commands = re.findall(r"^everstep ((?:validate|plan) .*)$", section, re.MULTILINE)
    assert (len(files), len(commands)) == (2, 2)
    for command in commands:
        assert main(command.split()) == 0, capsys.readouterr().err
    assert "trained first, since runs use their weights:\n  pretrain-" in capsys.readouterr().out
