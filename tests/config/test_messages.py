"""Every problem of an experiment is reported at once, each with its place and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import load, problems
from tests.support.repository import shipped_experiments
from workflow_lib import plan
from workflow_lib.cli import main
from workflow_lib.config import hints, messages
from workflow_lib.config.annotations import sections_of
from workflow_lib.config.experiment import Experiment
from workflow_lib.errors import ConfigError

SHIPPED = shipped_experiments()

pytestmark = pytest.mark.usefixtures("folder")


def test_all_problems_are_reported_at_once_each_with_its_line() -> None:
    lines = problems(
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
        ("trainng: {}", "trainng: no such setting; did you mean `training`? The settings here are: name, labels"),
        ("training: {epochs: 1.5}", "training.epochs: 1.5 is not allowed; allowed: a whole number, at least 1"),
        ("training: {epochs: true}", "training.epochs: true is not a value"),
        ("runtime: {pack: true}", "runtime.pack: true is not a value"),  # pydantic would read 1: no packs
        ("optimizer: {lr: yes}", "optimizer.lr: 'yes' is not allowed; allowed: a number, above 0"),
        ("optimizer: {lr: -1}", "optimizer.lr: -1 is not allowed; allowed: a number, above 0"),
        ("optimizer: {lr: .inf}", "numbers are finite"),
        ("optimizer: {lr: 'nan'}", "optimizer.lr: 'nan' is not allowed"),
        ("optimizer: {name: adam}", "optimizer: no optimizer 'adam'; did you mean `adamw`? Allowed: adamw, sgd"),
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
        (
            "training: {early_stopping: {metric: val_f1}}",
            "training.early_stopping.metric: val_f1 is not measured in",
        ),
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
        ("tune: {space: {optimizer.lr: {low: 1}}}", "tune.space.optimizer.lr.high: is missing: upper bound, included"),
    ],
)
def test_a_message_names_the_problem_and_the_allowed_values(text: str, said: str) -> None:
    (line,) = problems(f"name: a\n{text}")
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
def test_long_values_are_shortened_in_messages(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as rejected:
        plan.expand(load(f"name: a\n{text}"))
    (line,) = str(rejected.value).splitlines()
    assert said in line
    assert "..." in line
    assert len(line) < 600


def test_long_overrides_are_shortened_in_messages() -> None:
    assert all(len(line) < 400 for line in problems("name: a", f"seed={LONG}") + problems("name: a", LONG))


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
def test_a_number_that_must_be_a_typo_is_rejected(name: str, most: float) -> None:
    value = "[{}]" if name == "model.params.hidden" else "{}"
    data = "data: {name: npz, params: {path: x}}"  # of unknown size
    ranks = "training.batch_size=1024" if name == "runtime.nproc" else ""
    load(f"name: a\n{data}", ranks, f"{name}={value.format(most)}")
    (line,) = problems(f"name: a\n{data}", f"{name}={value.format(int(most) + 1)}")
    assert name in line and line.endswith(f"at most {most}") or line.endswith(f"at most {most}, or null")


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "a" * 65, "é"])
def test_the_name_is_safe_as_a_folder(name: str) -> None:
    (line,) = problems(json.dumps({"name": name}))
    assert "letters, digits" in line


def test_a_missing_name_is_reported_with_the_file() -> None:
    assert problems("seed: 1")[0].startswith("x.yaml:1: name: is missing")


def test_a_problem_in_a_base_file_names_that_file() -> None:
    Path("base.yaml").write_text("name: a\n\ntraining: {epochs: -1}")
    assert problems("extends: base.yaml\nseed: 1")[0].startswith("base.yaml:3: training.epochs: -1")


def test_several_files_are_validated_separately(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("x,class\n1,a\n")
    texts = {
        "good": "name: a",
        "bad": "name: b\nseed: -1",
        "empty": "name: c\ndata: {name: npz, params: {path: no}}",
        "table": "name: d\ndata: {name: table, params: {path: t.csv, target: klass}}\nmodel: {name: tabular}",
    }
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text)
    assert main(["validate", "bad.yaml", "empty.yaml", "good.yaml", "table.yaml"]) == 2
    told = capsys.readouterr()
    assert told.out == "good.yaml: valid; 1 run\n"
    bad, empty, table = told.err.splitlines()
    assert "bad.yaml:2: seed: -1 is not allowed" in bad
    assert empty.startswith("empty.yaml: data.params.path: no such file: no")
    assert table.startswith("table.yaml: ")
    assert "has no column `klass` (data.params.target); did you mean `class`?" in table
    assert main(["plan", "table.yaml"]) == 2
    assert capsys.readouterr().err.count("has no column `klass`") == 1
    assert main(["validate", "good.yaml"]) == 0


def _settings(section: Any, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in sections_of(field.annotation):
            yield from _settings(inner, f"{prefix}{name}.")


def test_a_hint_by_meaning_names_a_setting_that_exists_by_a_name_that_none_has() -> None:
    known = set(_settings(Experiment))
    assert {name for name in hints.OTHER_NAMES.values() if not name.startswith("data.params.")} <= known
    words = {name.rpartition(".")[2] for name in known}
    assert not words & (hints.OTHER_NAMES.keys() | hints.NO_SETTING.keys() | hints.PARAMETERS.keys())


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("learning_rate=0.1", "`optimizer.lr`"),
        ("optimizer.learning_rate=0.1", "`optimizer.lr`"),
        ("model.lr=0.1", "`optimizer.lr`"),
        ("weight_decay=0.1", "`optimizer.weight_decay` or `model.init.weight_decay`"),
        ("batch_size=3", "`training.batch_size` or `evaluate.batch_size`"),
        ("training.Max-Epochs=3", "`training.epochs`"),
        ("runtime.num_workers=3", "`runtime.workers`"),
        ("workers=3", "`runtime.workers`"),
        ("trainer.devices=2", "`runtime.nproc`"),
        ("trainig.epochs=2", "`training`"),
        ("training.epoch=2", "`epochs`"),
        ("early_stopping=3", "`training.early_stopping`"),
        ("report_to=wandb", "`tracking.to`"),
        ("dropout=0.1", "`model.params.dropout`"),
        ("hidden_size=3", "`model.params.hidden`"),
        ("optimizer._target_=torch.optim.Adam", "`optimizer.name`"),
        ("sweep.grid.learning_rate=[1]", "`optimizer.lr`"),
    ],
)
def test_a_name_of_another_library_or_section_leads_to_the_setting(setting: str, meant: str) -> None:
    (line,) = problems("name: a", setting)
    assert f"no such setting; did you mean {meant}?" in line


# Names as users of PyTorch, Lightning, HF Trainer, Keras, timm, scikit-learn and Hydra write them; None: no hint.
OF_OTHERS: dict[str, str | None] = {
    **dict.fromkeys(("learning_rate", "base_lr", "learning_rate_init", "max_lr"), "`optimizer.lr`"),
    **dict.fromkeys(("optim", "opt", "solver"), "`optimizer.name`"),
    **dict.fromkeys(("adam_beta1", "beta_2", "opt_betas"), "`optimizer.betas`"),
    **dict.fromkeys(("adam_epsilon", "epsilon"), "`optimizer.eps`"),
    **dict.fromkeys(("lr_scheduler_type", "scheduler", "sched"), "`schedule.name`"),
    **dict.fromkeys(("schedule.gamma", "decay_rate"), "`schedule.factor`"),
    **dict.fromkeys(("schedule.step_size", "decay_epochs"), "`schedule.every_epochs`"),
    **dict.fromkeys(("eta_min", "min_lr"), "`schedule.final_fraction`"),
    **dict.fromkeys(("warmup_ratio", "num_warmup_epochs"), "`schedule.warmup_epochs`"),
    "num_warmup_steps": "`schedule.warmup_steps`",
    **dict.fromkeys(("max_epochs", "num_train_epochs", "n_epochs"), "`training.epochs`"),
    **dict.fromkeys(("max_iter", "max_iters", "training.total_steps"), "`training.max_steps`"),
    **dict.fromkeys(("minibatch_size", "per_device_train_batch_size", "bs"), "`training.batch_size`"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), "`evaluate.batch_size`"),
    **dict.fromkeys(("accumulate_grad_batches", "gradient_accumulation_steps"), "`training.accumulation_steps`"),
    **dict.fromkeys(("gradient_clip_val", "max_grad_norm", "clipnorm", "clip_grad"), "`training.clip_norm`"),
    **dict.fromkeys(("fp16", "mixed_precision", "amp"), "`training.precision`"),
    **dict.fromkeys(("use_ema", "model_ema_decay"), "`training.ema_decay`"),
    **dict.fromkeys(("label_smooth", "training.label_smooth", "smoothing"), "`training.label_smoothing`"),
    **dict.fromkeys(("monitor", "metric_for_best_model", "scoring"), "`training.select_metric`"),
    "n_iter_no_change": "`training.early_stopping.patience`",
    **dict.fromkeys(("eval_strategy", "val_check_interval", "eval_steps"), "`training.validate_every_steps`"),
    **dict.fromkeys(("log_every_n_steps", "logging_steps"), "`training.log_every_steps`"),
    **dict.fromkeys(("deterministic", "cudnn_benchmark"), "`training.determinism`"),
    **dict.fromkeys(("torch_compile", "jit_compile"), "`training.compile`"),
    **dict.fromkeys(("strategy", "fsdp"), "`training.parallel`"),
    **dict.fromkeys(("class_weight", "pos_weight"), "`training.class_weights`"),
    **dict.fromkeys(("training.sampler", "data.sampler"), "`training.sampling`"),
    "channels_last": "`training.memory_format`",
    "callbacks": "`training.hooks`",
    "hflip": "`augment.flip_horizontal`",
    **dict.fromkeys(("val_ratio", "val_split", "valid_ratio", "data.validation_split"), "`data.validation_fraction`"),
    **dict.fromkeys(("test_size", "holdout", "test_ratio"), "`data.test_fraction`"),
    **dict.fromkeys(("backbone_name", "arch", "model.backbone"), "`model.name`"),
    **dict.fromkeys(("initial_checkpoint", "pretrained"), "`model.init.from`"),
    **dict.fromkeys(("seed_value", "random_state", "seed_everything"), "`seed`"),
    **dict.fromkeys(("devices", "gpus", "world_size"), "`runtime.nproc`"),
    **dict.fromkeys(("dataloader_num_workers", "num_workers"), "`runtime.workers`"),
    "accelerator": "`runtime.device`",
    **dict.fromkeys(("checkpoint_every", "save_steps", "every_n_train_steps"), "`checkpoint.interval_steps`"),
    "save_total_limit": "`checkpoint.keep_last`",
    "param_grid": "`sweep.grid`",
    "n_splits": "`sweep.folds`",
    "n_trials": "`tune.trials`",
    "study": "`tune`",
    "sampler": "`tune.sampler`",
    "report_to": "`tracking.to`",
    "wandb_project": "`tracking.wandb.project`",
    "run_name": "`name`",
    "image_size": "`data.params.size` of arrow, image_folder, image_masks, image_table or tar",
    "target_column": "`data.params.target` of arrow, image_table, labelled_text, table or tar",
    "target": "`data.params.target` of arrow, image_table, labelled_text, table or tar",
    "path": "`data.params.path` of 10 data sets",
    "hidden_layer_sizes": "`model.params.hidden`",
    "train": "`training`",
    **dict.fromkeys(
        ("amsgrad", "pin_memory", "prefetch_factor", "sample_weight", "clipvalue", "alpha", "tol", "refit", "defaults",
         "hydra", "host", "every_n_epochs", "push_to_hub", "fast_dev_run", "sync_batchnorm", "drop_path",
         "reprob", "model.params.stride", "model.params.size", "test", "timeout"),
    ),
    **dict.fromkeys(  # answered with a reason
        ("resume_from", "ckpt_path", "initial_epoch", "shuffle", "drop_last", "greater_is_better", "num_classes",
         "training.early_stopping.mode", "output_dir", "verbose", "port", "user", "mode"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "meant"), OF_OTHERS.items())
def test_a_hint_is_right_or_there_is_none(name: str, meant: str | None) -> None:
    path, owner = tuple(name.split(".")), Experiment
    for part in path[:-1]:
        inner = sections_of(owner.model_fields[part].annotation)
        owner = inner[0] if inner else owner
    line = messages.unknown(path[-1], owner.model_fields, hints.meant(path, 1, owner, {}))
    assert (f"; did you mean {meant}? The" in line) if meant else "did you mean" not in line, line


def test_a_setting_that_is_not_needed_is_answered_with_the_reason() -> None:
    (line,) = problems("name: a", "resume_from_checkpoint=true")
    assert "no such setting: a training always saves checkpoints and resumes" in line


@pytest.mark.parametrize(
    "text",
    [
        "notify: https://hooks.x/s3cret",
        "notify: [s3cret]",
        "notify: {slack_env: 'https://hooks.x/s3cret'}",
        "notify: {webhook: 'https://hooks.x/s3cret'}",
        "notify: {slack_env: {s3cret: 1}}",
        "notify: {slack_env: A, timeout_s: s3cret}",
        "notify: {mail: {host: h, sender: a@x.org, to: [b@x.org], user_env: U, password_env: s3cret}}",
        "notify: {mail: {host: 'u:s3cret@h', sender: a@x.org, to: [b@x.org]}}",
    ],
)
def test_a_secret_in_the_file_is_rejected_and_not_quoted(text: str) -> None:
    (line,) = problems(f"name: a\n{text}\n")
    assert line.startswith("x.yaml:2: notify")
    assert "s3cret" not in line


def test_a_secret_in_an_override_is_not_quoted() -> None:
    (line,) = problems("name: a", "notify.slack_env=https://hooks.x/s3cret")
    assert line.startswith("set notify.slack_env: notify.slack_env: give the NAME of an environment variable")
    assert "s3cret" not in line
