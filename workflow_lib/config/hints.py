"""Settings that a name of another library stands for, or that stand in another section than the given one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from workflow_lib import plugins
from workflow_lib.config.annotations import sections_of
from workflow_lib.config.run import VARIANTS
from workflow_lib.config.yaml import KeyPath, dotted
from workflow_lib.plugins import Section

MOST_CHOICES = 3  # settings of one name that a message lists
CLOSE = 0.8  # similarity of a name of the same section that goes before an equal name of another section

# The settings behind the names that other libraries use.
OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr", "initial_lr", "eta", "peak_lr"), "optimizer.lr"),
    **dict.fromkeys(("wd", "l2", "weight_decay_rate", "l2_regularization"), "optimizer.weight_decay"),
    **dict.fromkeys(("optim", "optimiser", "optimizer_name"), "optimizer.name"),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2", "beta_1", "beta_2"), "optimizer.betas"),
    **dict.fromkeys(("adam_epsilon", "epsilon"), "optimizer.eps"),
    **dict.fromkeys(
        ("lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler", "learning_rate_schedule"), "schedule.name"
    ),
    **dict.fromkeys(("warmup", "warm_up", "warmup_ratio", "num_warmup_epochs"), "schedule.warmup_epochs"),
    **dict.fromkeys(("num_warmup_steps", "warmup_iters"), "schedule.warmup_steps"),
    **dict.fromkeys(("min_lr", "eta_min", "lr_min"), "schedule.final_fraction"),
    **dict.fromkeys(("max_epochs", "num_epochs", "n_epochs", "num_train_epochs", "nb_epochs"), "training.epochs"),
    **dict.fromkeys(("num_steps", "total_steps", "train_steps", "max_iters", "iterations"), "training.max_steps"),
    **dict.fromkeys(
        ("bs", "batch", "batchsize", "train_batch", "train_batch_size", "per_device_train_batch_size"),
        "training.batch_size",
    ),
    **dict.fromkeys(
        ("eval_batch_size", "test_batch_size", "per_device_eval_batch_size"),
        "evaluate.batch_size",
    ),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum", "accumulation"),
        "training.accumulation_steps",
    ),
    **dict.fromkeys(
        ("gradient_clip_val", "max_grad_norm", "grad_clip", "gradient_clipping", "clip_grad_norm", "clip_grad"),
        "training.clip_norm",
    ),
    **dict.fromkeys(("clipnorm", "global_clipnorm"), "training.clip_norm"),
    **dict.fromkeys(("amp", "fp16", "bf16", "tf32", "mixed_precision", "dtype", "use_amp"), "training.precision"),
    **dict.fromkeys(("ema", "ema_rate", "use_ema", "swa", "ema_momentum"), "training.ema_decay"),
    **dict.fromkeys(("gradient_checkpointing", "grad_checkpointing"), "training.activation_checkpointing"),
    **dict.fromkeys(("smoothing", "label_smoothing_factor"), "training.label_smoothing"),
    **dict.fromkeys(("early_stop", "es_patience", "early_stopping_patience"), "training.early_stopping"),
    **dict.fromkeys(("monitor", "metric_for_best_model"), "training.select_metric"),
    **dict.fromkeys(("criterion", "loss_fn", "loss_function", "objective"), "training.loss"),
    **dict.fromkeys(("strategy", "distributed", "ddp", "fsdp", "distributed_backend"), "training.parallel"),
    **dict.fromkeys(("deterministic", "full_determinism"), "training.determinism"),
    **dict.fromkeys(("torch_compile", "use_compile", "jit_compile"), "training.compile"),
    **dict.fromkeys(("eval_steps", "eval_interval", "val_check_interval"), "training.validate_every_steps"),
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "log_interval", "log_steps"), "training.log_every_steps"),
    **dict.fromkeys(("shuffle", "sampler_weights"), "training.sampling"),
    **dict.fromkeys(("class_weight", "pos_weight"), "training.class_weights"),
    **dict.fromkeys(("callbacks",), "training.hooks"),
    **dict.fromkeys(("mixup_alpha",), "augment.mixup"),
    **dict.fromkeys(("cutmix_alpha",), "augment.cutmix"),
    **dict.fromkeys(("flip", "hflip", "horizontal_flip", "random_flip"), "augment.flip_horizontal"),
    **dict.fromkeys(("vflip", "vertical_flip"), "augment.flip_vertical"),
    **dict.fromkeys(("rotate", "rotation_range", "degrees"), "augment.rotation"),
    **dict.fromkeys(("augmentation", "augmentations", "transforms", "data_augmentation"), "augment"),
    **dict.fromkeys(("val_fraction", "val_split", "validation_split", "val_size"), "data.validation_fraction"),
    **dict.fromkeys(("test_size", "test_split"), "data.test_fraction"),
    **dict.fromkeys(("dataset", "dataset_name"), "data.name"),
    **dict.fromkeys(("data_path", "data_dir", "dataset_path", "train_file"), "data.params.path"),
    **dict.fromkeys(("architecture", "arch", "model_name", "network", "backbone"), "model.name"),
    **dict.fromkeys(("pretrained", "init_from", "finetune", "weights", "model_name_or_path"), "model.init.from"),
    **dict.fromkeys(("random_seed", "random_state", "manual_seed", "seed_everything"), "seed"),
    **dict.fromkeys(
        ("gpus", "num_gpus", "n_gpus", "ngpus", "nproc_per_node", "devices", "num_devices"), "runtime.nproc"
    ),
    **dict.fromkeys(("num_processes", "world_size"), "runtime.nproc"),
    **dict.fromkeys(("num_nodes", "nnodes"), "runtime.nodes"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "n_jobs"), "runtime.workers"),
    **dict.fromkeys(("num_threads", "omp_num_threads"), "runtime.threads"),
    **dict.fromkeys(("accelerator", "use_cuda", "no_cuda", "use_cpu"), "runtime.device"),
    **dict.fromkeys(("save_steps", "save_every"), "checkpoint.interval_steps"),
    **dict.fromkeys(("save_total_limit", "save_top_k"), "checkpoint.keep_last"),
    **dict.fromkeys(("test_time_augmentation", "ttaug"), "evaluate.tta"),
    **dict.fromkeys(("n_splits", "k_folds", "kfold", "num_folds", "n_folds", "cv"), "sweep.folds"),
    **dict.fromkeys(("num_seeds", "n_seeds"), "sweep.seeds"),
    **dict.fromkeys(("n_trials", "num_trials"), "tune.trials"),
    **dict.fromkeys(("search_space", "param_space"), "tune.space"),
    **dict.fromkeys(("report_to", "logger", "loggers", "tracker", "trackers"), "tracking.to"),
    "tensorboard": "tracking.to",
    **dict.fromkeys(
        ("watch", "log_freq", "track_grad_norm", "log_gradients", "histogram_freq"), "tracking.every_steps"
    ),
    **dict.fromkeys(("log_images", "num_images"), "tracking.images"),
    **dict.fromkeys(("tags", "notes", "comment"), "labels"),
    **dict.fromkeys(("experiment_name", "run_name", "exp_name"), "name"),
    **dict.fromkeys(("slack", "slack_webhook", "webhook"), "notify"),
}
# Names of one thing in a section that several plugins have under different names.
PARAMETERS = {
    **dict.fromkeys(("num_layers", "n_layers", "n_layer", "num_hidden_layers", "depth"), ("layers", "levels", "size")),
    **dict.fromkeys(
        ("hidden_size", "hidden_dim", "d_model", "n_embd", "hidden_units", "units"), ("width", "hidden", "channels")
    ),
    **dict.fromkeys(("num_heads", "n_head", "n_heads", "num_attention_heads"), ("heads",)),
    **dict.fromkeys(("dropout_rate", "drop_rate", "dropout_prob"), ("dropout",)),
    **dict.fromkeys(("block_size", "max_length", "max_seq_length", "seq_len", "n_positions"), ("context", "length")),
    **dict.fromkeys(("image_size", "img_size", "resolution", "input_size"), ("height", "size")),
    **dict.fromkeys(("label", "label_column", "target_column", "y"), ("target", "targets", "labels")),
    **dict.fromkeys(("sep", "separator"), ("delimiter",)),
}
# Names of other libraries for what needs no setting here, and the reason.
NO_SETTING = {
    **dict.fromkeys(
        ("resume", "resume_from_checkpoint", "ckpt_path", "enable_checkpointing"),
        "a training always saves checkpoints and resumes from the newest one",
    ),
    **dict.fromkeys(
        ("output_dir", "default_root_dir", "save_dir", "log_dir", "logging_dir"),
        "results are in results/<name>/ and checkpoints in work/; another place: `snakemake --directory`",
    ),
    **dict.fromkeys(("num_classes", "n_classes", "num_labels", "input_shape"), "it comes from the data"),
    **dict.fromkeys(("verbose", "progress_bar", "enable_progress_bar"), "`everstep run` shows the progress"),
    "check_val_every_n_epoch": "each epoch is validated; in steps: `training.validate_every_steps`",
    **dict.fromkeys(("steps_per_epoch",), "an epoch is one pass over the training split"),
}
NAME_WORDS = ("type", "_target_", "class", "class_path", "kind")


def meant(path: KeyPath, value: Any, owner: Any, values: Any) -> str:
    """Return the settings that are probably meant by an unknown one, as part of a message; empty if there is none.

    ``value`` is what the setting was given, ``owner`` the section that lacks it, ``values`` those of the experiment.
    """
    word = _word(path[-1])
    if isinstance(value, Mapping) and value and len(path) == 1:
        found = _meant_inside(word, value, values)
        return f"; did you mean {', '.join(found)}?" if found else ""
    if word in NO_SETTING:
        return f": {NO_SETTING[word]}"
    if word in NAME_WORDS and len(path) == 2 and path[0] in VARIANTS:
        return f"; did you mean `{path[0]}.name`?"
    close = difflib.get_close_matches(word, list(owner.model_fields), 1, CLOSE)
    if close and word not in OTHER_NAMES:
        return ""
    return meant_by(word, values, but=dotted(path))


def meant_by(word: str, values: Any, but: str = "") -> str:
    """Return the settings that a word means, without the name ``but``, as part of a message; empty if there is none."""
    found = [name for name in settings(_word(word), values) if name != but]
    return f"; did you mean {_listed(found)}?" if found else ""


def settings(word: str, values: Any) -> list[str]:
    """Return the dotted names of the settings that a word means: of another library, of any section, of a plugin."""
    if word in OTHER_NAMES:
        return [OTHER_NAMES[word]]
    return list(_places().get(word, ())) or list(_of_plugins(word, values))


def _word(name: Any) -> str:
    return str(name).lower().replace("-", "_")


def _listed(names: list[str]) -> str:
    shown = [f"`{name}`" for name in names[:MOST_CHOICES]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if shown[1:] else shown[0]


def _meant_inside(section: str, value: Mapping[str, Any], values: Any) -> list[str]:
    """Return what the settings of an unknown section mean, unless a section of about this name has them all."""
    fields = _sections()
    near = next(iter(difflib.get_close_matches(section, fields, 1)), None) or next(
        (name for name in fields if name.startswith(section)), None
    )
    words = {key: _word(key) for key in value}
    if near and all(word in fields[near] for word in words.values()):
        return []
    found = {key: settings(word, values) for key, word in words.items()}
    return [_listed(names) for names in found.values() if names][:MOST_CHOICES]


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
    for name in sorted(_dotted(_experiment()), key=lambda name: name.count(".")):
        found.setdefault(name.rpartition(".")[2], {})[name] = None
    return {word: tuple(names) for word, names in found.items()}


def _dotted(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in sections_of(field.annotation):
            yield from _dotted(inner, f"{prefix}{name}.")


def _of_plugins(word: str, values: Any) -> Iterator[str]:
    """Yield the settings of this name of the experiment's model and data set."""
    for section, kind in (("model", "models"), ("data", "data")):
        given = values.get(section) if isinstance(values, Mapping) else None
        name = given.get("name") if isinstance(given, Mapping) else None
        try:
            fields = plugins.load(kind, str(name or VARIANTS[section][0])).Params.model_fields
        except plugins.PluginError:
            continue
        yield from (f"{section}.params.{known}" for known in (word, *PARAMETERS.get(word, ())) if known in fields)
