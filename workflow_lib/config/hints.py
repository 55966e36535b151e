"""Settings that a name of another library stands for, or that stand in another section than the given one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from workflow_lib import plugins
from workflow_lib.config.annotations import sections_of
from workflow_lib.config.run import VARIANTS
from workflow_lib.config.yaml import KeyPath, dotted
from workflow_lib.plugins import Section

MOST_CHOICES = 3  # settings of one name that a message lists
MOST_DATA_SETS = 6  # that a message lists
CLOSE = 0.8  # similarity of a name of the same section that goes before an equal name of another section

# The settings behind the names that other libraries use: a name, or a name in a section.
OTHER_NAMES = {
    **dict.fromkeys(
        ("learning_rate", "base_lr", "max_lr", "initial_lr", "peak_lr", "learning_rate_init", "lr0"), "optimizer.lr"
    ),
    **dict.fromkeys(("wd", "l2", "weight_decay_rate", "l2_regularization"), "optimizer.weight_decay"),
    **dict.fromkeys(("optim", "optimiser", "optimizer_name", "opt", "optimizer_type", "solver"), "optimizer.name"),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2", "beta_1", "beta_2", "opt_betas"), "optimizer.betas"),
    **dict.fromkeys(("adam_epsilon", "epsilon", "opt_eps", "adam_eps"), "optimizer.eps"),
    **dict.fromkeys(
        ("lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler", "learning_rate_schedule", "sched"),
        "schedule.name",
    ),
    **dict.fromkeys(("warmup", "warm_up", "warmup_ratio", "num_warmup_epochs"), "schedule.warmup_epochs"),
    **dict.fromkeys(("num_warmup_steps", "warmup_iters", "warmup_iterations"), "schedule.warmup_steps"),
    **dict.fromkeys(("min_lr", "eta_min", "lr_min"), "schedule.final_fraction"),
    **dict.fromkeys(("decay_epochs", "lr_decay_epochs", "schedule.step_size"), "schedule.every_epochs"),
    **dict.fromkeys(("decay_rate", "lr_decay", "schedule.gamma"), "schedule.factor"),
    **dict.fromkeys(
        ("max_epochs", "num_epochs", "n_epochs", "num_train_epochs", "nb_epochs", "max_epoch"), "training.epochs"
    ),
    **dict.fromkeys(
        ("num_steps", "total_steps", "train_steps", "max_iter", "max_iters", "iterations", "num_iterations", "n_iters"),
        "training.max_steps",
    ),
    **dict.fromkeys(
        (
            "bs",
            "batch",
            "batchsize",
            "train_batch",
            "train_batch_size",
            "per_device_train_batch_size",
            "minibatch_size",
            "mini_batch_size",
            "minibatch",
            "mini_batch",
        ),
        "training.batch_size",
    ),
    **dict.fromkeys(
        ("eval_batch_size", "test_batch_size", "validation_batch_size", "val_batch_size", "per_device_eval_batch_size"),
        "evaluate.batch_size",
    ),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum", "grad_accum_steps", "accumulation"),
        "training.accumulation_steps",
    ),
    **dict.fromkeys(
        ("gradient_clip_val", "max_grad_norm", "grad_clip", "gradient_clipping", "clip_grad_norm", "clip_grad"),
        "training.clip_norm",
    ),
    **dict.fromkeys(("clipnorm", "global_clipnorm"), "training.clip_norm"),
    **dict.fromkeys(
        ("amp", "fp16", "bf16", "tf32", "mixed_precision", "dtype", "use_amp", "amp_dtype"), "training.precision"
    ),
    **dict.fromkeys(
        ("ema", "ema_rate", "use_ema", "ema_momentum", "model_ema", "model_ema_decay"), "training.ema_decay"
    ),
    **dict.fromkeys(("gradient_checkpointing", "grad_checkpointing"), "training.activation_checkpointing"),
    **dict.fromkeys(("smoothing", "label_smooth", "label_smoothing_factor"), "training.label_smoothing"),
    **dict.fromkeys(("early_stop", "early_stopping_patience"), "training.early_stopping"),
    **dict.fromkeys(("n_iter_no_change", "es_patience"), "training.early_stopping.patience"),
    **dict.fromkeys(
        (
            "monitor",
            "metric_for_best_model",
            "eval_metric",
            "scoring",
            "load_best_model_at_end",
            "restore_best_weights",
        ),
        "training.select_metric",
    ),
    **dict.fromkeys(("criterion", "loss_fn", "loss_function", "objective"), "training.loss"),
    **dict.fromkeys(("strategy", "distributed", "ddp", "fsdp", "distributed_backend"), "training.parallel"),
    **dict.fromkeys(
        ("deterministic", "full_determinism", "cudnn_deterministic", "cudnn_benchmark"), "training.determinism"
    ),
    **dict.fromkeys(
        ("torch_compile", "torchcompile", "use_compile", "compile_model", "jit_compile"), "training.compile"
    ),
    **dict.fromkeys(
        ("eval_steps", "eval_every", "eval_interval", "eval_strategy", "evaluation_strategy", "val_check_interval"),
        "training.validate_every_steps",
    ),
    "channels_last": "training.memory_format",
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "log_interval", "log_steps"), "training.log_every_steps"),
    **dict.fromkeys(("sampler_weights", "weighted_sampler", "training.sampler", "data.sampler"), "training.sampling"),
    **dict.fromkeys(("class_weight", "pos_weight"), "training.class_weights"),
    **dict.fromkeys(("callbacks",), "training.hooks"),
    **dict.fromkeys(("mixup_alpha",), "augment.mixup"),
    **dict.fromkeys(("cutmix_alpha",), "augment.cutmix"),
    **dict.fromkeys(("flip", "hflip", "horizontal_flip", "random_flip"), "augment.flip_horizontal"),
    **dict.fromkeys(("vflip", "vertical_flip"), "augment.flip_vertical"),
    **dict.fromkeys(("rotate", "rotation_range", "degrees"), "augment.rotation"),
    **dict.fromkeys(
        ("augmentation", "augmentations", "transform", "transforms", "data_augmentation", "color_jitter"), "augment"
    ),
    **dict.fromkeys(
        (
            "val_fraction",
            "val_ratio",
            "val_split",
            "val_size",
            "val_pct",
            "valid_size",
            "valid_ratio",
            "dev_size",
            "validation_split",
            "validation_ratio",
            "validation_size",
        ),
        "data.validation_fraction",
    ),
    **dict.fromkeys(
        ("test_size", "test_split", "test_ratio", "holdout", "hold_out", "holdout_fraction"), "data.test_fraction"
    ),
    **dict.fromkeys(("dataset", "dataset_name", "datamodule"), "data.name"),
    **dict.fromkeys(("data_path", "data_dir", "dataset_path", "train_file"), "data.params.path"),
    **dict.fromkeys(
        ("architecture", "arch", "model_name", "model_type", "network", "backbone", "backbone_name", "encoder_name"),
        "model.name",
    ),
    **dict.fromkeys(
        (
            "pretrained",
            "pretrained_weights",
            "init_from",
            "finetune",
            "weights",
            "model_name_or_path",
            "initial_checkpoint",
        ),
        "model.init.from",
    ),
    **dict.fromkeys(
        ("random_seed", "random_state", "manual_seed", "seed_everything", "seed_value", "rng_seed"), "seed"
    ),
    **dict.fromkeys(
        ("gpus", "num_gpus", "n_gpus", "ngpus", "nproc_per_node", "devices", "num_devices"), "runtime.nproc"
    ),
    **dict.fromkeys(("num_processes", "world_size"), "runtime.nproc"),
    **dict.fromkeys(("num_nodes", "nnodes"), "runtime.nodes"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "n_jobs"), "runtime.workers"),
    **dict.fromkeys(("num_threads", "omp_num_threads"), "runtime.threads"),
    **dict.fromkeys(("accelerator", "use_cuda", "no_cuda", "use_cpu"), "runtime.device"),
    **dict.fromkeys(
        ("save_steps", "save_every", "checkpoint_every", "checkpoint_interval", "every_n_train_steps"),
        "checkpoint.interval_steps",
    ),
    **dict.fromkeys(("save_total_limit", "max_to_keep", "checkpoint_hist"), "checkpoint.keep_last"),
    **dict.fromkeys(("test_time_augmentation", "ttaug"), "evaluate.tta"),
    **dict.fromkeys(("n_splits", "k_folds", "kfold", "num_folds", "n_folds", "cv"), "sweep.folds"),
    **dict.fromkeys(("num_seeds", "n_seeds"), "sweep.seeds"),
    **dict.fromkeys(("n_trials", "num_trials", "max_trials"), "tune.trials"),
    **dict.fromkeys(("search_space", "param_space", "param_distributions"), "tune.space"),
    **dict.fromkeys(("param_grid", "grid_search"), "sweep.grid"),
    **dict.fromkeys(("study", "optuna", "hpo", "tuner", "tuning", "search"), "tune"),
    **dict.fromkeys(("report_to", "logger", "loggers", "tracker", "trackers"), "tracking.to"),
    **dict.fromkeys(("tensorboard", "log_wandb", "use_wandb"), "tracking.to"),
    **dict.fromkeys(("wandb_project", "project_name"), "tracking.wandb.project"),
    **dict.fromkeys(("wandb_entity",), "tracking.wandb.entity"),
    **dict.fromkeys(("wandb_mode", "wandb.mode"), "tracking.wandb.mode"),
    **dict.fromkeys(
        ("watch", "log_freq", "track_grad_norm", "log_gradients", "histogram_freq"), "tracking.every_steps"
    ),
    **dict.fromkeys(("log_images", "num_images"), "tracking.images"),
    **dict.fromkeys(("tags", "notes", "comment"), "labels"),
    **dict.fromkeys(("experiment", "experiment_name", "run_name", "exp_name", "task_name"), "name"),
    **dict.fromkeys(("slack", "slack_webhook", "webhook"), "notify"),
}
# Names of one thing in a section that several plugins have under different names.
PARAMETERS = {
    **dict.fromkeys(("num_layers", "n_layers", "n_layer", "num_hidden_layers", "depth"), ("layers", "levels", "size")),
    **dict.fromkeys(
        (
            "hidden_size",
            "hidden_dim",
            "d_model",
            "n_embd",
            "hidden_units",
            "units",
            "hidden_layer_sizes",
            "hidden_sizes",
        ),
        ("width", "hidden", "channels"),
    ),
    **dict.fromkeys(("num_heads", "n_head", "n_heads", "num_attention_heads"), ("heads",)),
    **dict.fromkeys(("dropout_rate", "drop_rate", "dropout_prob"), ("dropout",)),
    **dict.fromkeys(("block_size", "max_length", "max_seq_length", "seq_len", "n_positions"), ("context", "length")),
    **dict.fromkeys(("image_size", "img_size", "imgsz", "resolution", "input_size"), ("height", "size")),
    **dict.fromkeys(
        ("label", "label_column", "label_col", "target_column", "target_col", "target_name", "y"),
        ("target", "targets", "labels"),
    ),
    **dict.fromkeys(("sep", "separator"), ("delimiter",)),
}
# Names of other libraries for what needs no setting here, and the reason.
NO_SETTING = {
    **dict.fromkeys(
        (
            "resume",
            "checkpoint_path",
            "resume_from",
            "resume_from_checkpoint",
            "auto_resume",
            "ckpt_path",
            "enable_checkpointing",
            "initial_epoch",
        ),
        "a training always saves checkpoints and resumes from the newest one",
    ),
    **dict.fromkeys(
        (
            "output_dir",
            "overwrite_output_dir",
            "default_root_dir",
            "save_dir",
            "log_dir",
            "logging_dir",
            "checkpoint_dir",
        ),
        "results are in results/<name>/ and checkpoints in work/; another place: `snakemake --directory`",
    ),
    **dict.fromkeys(("num_classes", "n_classes", "num_labels", "input_shape"), "it comes from the data"),
    **dict.fromkeys(
        ("greater_is_better", "early_stopping.mode", "schedule.mode"), "the metric says which values are better"
    ),
    **dict.fromkeys(("shuffle", "drop_last"), "each epoch is shuffled and consists of whole batches"),
    **dict.fromkeys(
        ("verbose", "progress_bar", "enable_progress_bar", "disable_tqdm"), "`everstep run` shows the progress"
    ),
    "check_val_every_n_epoch": "each epoch is validated; in steps: `training.validate_every_steps`",
    **dict.fromkeys(("steps_per_epoch",), "an epoch is one pass over the training split"),
}
# Settings whose last word means something else without their section, such as the `port` of another server.
NOT_ALONE = ("notify.mail", "tracking.wandb.mode")
NAME_WORDS = ("type", "_target_", "class", "class_path", "kind")


def meant(path: KeyPath, value: Any, owner: Any, values: Any) -> str:
    """Return the settings that are probably meant by an unknown one, as part of a message; empty if there is none.

    ``value`` is what the setting was given, ``owner`` the section that lacks it, ``values`` those of the experiment.
    """
    word = _word(path[-1])
    if isinstance(value, Mapping) and value and len(path) == 1:
        found = _meant_inside(word, value, values)
        return f"; did you mean {', '.join(found)}?" if found else ""
    names = _names(path)
    if reason := next((NO_SETTING[name] for name in names if name in NO_SETTING), None):
        return f": {reason}"
    if len(path) == 1 and (name := _not_alone().get(word)):
        return f": there is only `{name}`"
    if word in NAME_WORDS and len(path) == 2 and path[0] in VARIANTS:
        return f"; did you mean `{path[0]}.name`?"
    close = difflib.get_close_matches(word, list(owner.model_fields), 1, CLOSE)
    if close and not any(name in OTHER_NAMES for name in names):
        return ""
    return meant_by(path, values)


def meant_by(path: KeyPath, values: Any) -> str:
    """Return the settings that an unknown one may mean, as part of a message; empty if there is none."""
    found = [name for name in settings(path, values) if name != f"`{dotted(path)}`"]
    return f"; did you mean {_listed(found)}?" if found else ""


def settings(path: KeyPath, values: Any) -> list[str]:
    """Return the settings that an unknown one may mean, in backquotes: of any section, of the model, of the data."""
    for name in _names(path):
        if name in OTHER_NAMES:
            return [f"`{OTHER_NAMES[name]}`"]
    return [f"`{name}`" for name in _places().get(_word(path[-1]), ())] or _of_plugins(path, values)


def _names(path: KeyPath) -> tuple[str, ...]:
    """Return the last word of a key path with its section, and alone."""
    words = [_word(part) for part in path[-2:]]
    return ".".join(words), words[-1]


def _word(name: Any) -> str:
    return str(name).lower().replace("-", "_")


def _listed(names: list[str]) -> str:
    shown = names[:MOST_CHOICES]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if shown[1:] else shown[0]


def _meant_inside(section: str, value: Mapping[str, Any], values: Any) -> list[str]:
    """Return what the settings of an unknown section mean, unless a section of about this name has them all."""
    fields = _sections()
    near = next(iter(difflib.get_close_matches(section, fields, 1)), None) or next(
        (name for name in fields if name.startswith(section)), None
    )
    if near and all(_word(key) in fields[near] for key in value):
        return []
    found = [settings((section, key), values) for key in value]
    return [_listed(names) for names in found if names][:MOST_CHOICES]


def _experiment() -> type[Section]:
    from workflow_lib.config.experiment import Experiment  # which is validated with messages of this module

    return Experiment


@cache
def _sections() -> dict[str, set[str]]:
    """Return the names of the settings of each section."""
    found = {name: sections_of(field.annotation) for name, field in _experiment().model_fields.items()}
    return {name: {inner for section in inside for inner in section.model_fields} for name, inside in found.items()}


@cache
def _places() -> dict[str, tuple[str, ...]]:
    """Return the dotted names of all settings by their last word, those of few words first."""
    found: dict[str, dict[str, None]] = {}
    alone = [name for name in _dotted(_experiment()) if not name.startswith(NOT_ALONE)]
    for name in sorted(alone, key=lambda name: name.count(".")):
        found.setdefault(name.rpartition(".")[2], {})[name] = None
    return {word: tuple(names) for word, names in found.items()}


@cache
def _not_alone() -> dict[str, str]:
    """Return the dotted names of the settings in NOT_ALONE by their last word."""
    return {name.rpartition(".")[2]: name for name in _dotted(_experiment()) if name.startswith(NOT_ALONE)}


def _dotted(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in sections_of(field.annotation):
            yield from _dotted(inner, f"{prefix}{name}.")


def _of_plugins(path: KeyPath, values: Any) -> list[str]:
    """Return the settings of this meaning of the experiment's model and data set, or else those of other data sets."""
    words = [word := _word(path[-1]), *PARAMETERS.get(word, ())]
    found = []
    for section, kind in (("model", "models"), ("data", "data")):
        given = values.get(section) if isinstance(values, Mapping) else None
        name = given.get("name") if isinstance(given, Mapping) else None
        found += [f"`{section}.params.{known}`" for known in _parameters(kind, name or VARIANTS[section][0], words)]
    if found or (len(path) > 1 and path[0] != "data"):
        return found
    having: dict[str, list[str]] = {}
    for name in plugins.available("data"):
        for known in _parameters("data", name, words):
            having.setdefault(known, []).append(name)
    return [f"`data.params.{known}` of {_few(names)}" for known, names in having.items()]


def _parameters(kind: str, name: Any, words: Iterable[str]) -> list[str]:
    """Return those of the words that are parameters of the plugin."""
    try:
        fields = plugins.load(kind, str(name)).Params.model_fields
    except plugins.PluginError:
        return []
    return [word for word in words if word in fields]


def _few(names: list[str]) -> str:
    """Return names of data sets, or how many they are."""
    if len(names) > MOST_DATA_SETS:
        return f"{len(names)} data sets"
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
