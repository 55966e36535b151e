"""Loading of models of Hugging Face Transformers: their heads, their preprocessing, and adapters by PEFT."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.errors import ConfigError
from workflow_lib.plugins import task_facts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workflow_lib.data import ModelSpec
    from workflow_lib.models.transformers import Lora

logger = logging.getLogger(__name__)

FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a model of the hub: no code, no pickles
PAD = 0  # the token that fills texts that have classes
SHOWN_NAMES = 6
BYTES = 1 / 255


def cached_folder(hub: str, revision: str, *, allow_download: bool) -> Path:
    """Return the folder of a hub's model in the local cache. Raises ConfigError if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if not allow_download:
            raise ConfigError(
                f"model.params.hub: {hub} ({revision}) is not in the local cache of Hugging Face; download it with "
                f"`hf download {hub} --revision {revision}`, or set model.params.allow_download: true"
            ) from error
    logger.info("downloading %s (%s) from the hub", hub, revision)
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=[*FILES]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model.params.hub: {hub} ({revision}) cannot be downloaded: {reason}") from error


def load(folder: Path, spec: ModelSpec, *, is_random: bool) -> nn.Module:
    """Return the model in a folder with the head for this data, or one of its configuration with random weights.

    On the meta device it has no weights. Its attribute `read_from_files` has the names of those from the folder; on
    the meta device, all that may be there.
    """
    import torch
    import transformers

    kind = _kind(spec)
    config = _configuration(folder, spec, is_random=is_random)
    automatic: Any = getattr(transformers, kind)
    with _rejected(folder, f"is no model for {kind.removeprefix('AutoModelFor')}"), _quiet():
        if is_random or torch.get_default_device().type == "meta":
            network = automatic.from_config(config, dtype=torch.float32)
            base = f"{network.base_model_prefix}." if task_facts(spec.task).answers != "token" else ""
            read = () if is_random else (name for name in network.state_dict() if name.startswith(base))
            network.read_from_files = frozenset(read)
        else:
            network = _with_weights(automatic, folder, config)
    prepare = _image_arguments(folder, spec, is_random=is_random) if _is_image(spec) else _token_arguments(kind)
    if not (is_random or _is_image(spec)):
        _check_tokenizer(folder, spec)
    network.register_forward_pre_hook(prepare, with_kwargs=True)
    # the vocabulary of a model may be larger than that of its tokenizer
    network.register_forward_hook(lambda module, inputs, outputs: outputs.logits[..., : spec.outputs])
    return network


def _is_image(spec: ModelSpec) -> bool:
    return len(spec.input_shape) == 3


def _kind(spec: ModelSpec) -> str:
    """Return the name of the automatic class whose head fits the task."""
    if _is_image(spec):
        return "AutoModelForImageClassification"
    return "AutoModelForCausalLM" if task_facts(spec.task).answers == "token" else "AutoModelForSequenceClassification"


def _configuration(folder: Path, spec: ModelSpec, *, is_random: bool) -> Any:
    """Return the configuration in the folder, for this data. Raises ConfigError if the model does not fit the data."""
    from transformers import AutoConfig

    with _rejected(folder, "has no configuration of a model"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if task_facts(spec.task).answers != "token":
        config.num_labels = spec.outputs
    config.use_cache = False
    sizes = _image_sizes(spec) if _is_image(spec) else {"vocab_size": vocabulary_of(spec)}
    for name, needed in sizes.items():
        found = getattr(config, name, needed)
        if is_random:
            setattr(config, name, needed)
        elif found != needed and not (name == "vocab_size" and found > needed):
            raise ConfigError(f"model.params: {folder}: its {name} is {found}, and the data needs {needed}")
    if not _is_image(spec):
        (length,), longest = spec.input_shape, getattr(config, "max_position_embeddings", None)
        if longest is not None and longest < length:
            raise ConfigError(
                f"model.params: {folder}: reads at most {longest} tokens, and the data has texts of {length}; shorten "
                f"them in the settings of the data"
            )
        if _kind(spec) == "AutoModelForSequenceClassification":
            if not is_random and config.pad_token_id not in (PAD, None):
                raise ConfigError(
                    f"model.params: {folder}: fills texts with token {config.pad_token_id}, and the data with {PAD}; "
                    f"use a model whose padding is token {PAD}, such as BERT, or `weights: random`"
                )
            config.pad_token_id = PAD
    return config


def vocabulary_of(spec: ModelSpec) -> int:
    """Return the number of different tokens of the inputs."""
    tokens: int = spec.facts()["vocabulary"]
    return tokens


def _image_sizes(spec: ModelSpec) -> dict[str, Any]:
    channels, height, width = spec.input_shape
    return {"num_channels": channels, "image_size": height if height == width else (height, width)}


def _check_tokenizer(folder: Path, spec: ModelSpec) -> None:
    """Raise ConfigError if the tokens of the data are not those that the weights were trained with."""
    file = folder / "tokenizer.json"
    if not file.exists():
        logger.warning("%s does not exist: the tokens of the data cannot be compared with those of the model", file)
        return
    theirs = json.loads(file.read_text())
    if spec.tokenizer:
        ours, what = json.loads(spec.tokenizer), "was made with another tokenizer"
        is_same = all(ours["model"].get(part) == theirs["model"].get(part) for part in ("type", "vocab", "merges"))
    else:  # tokens in files of the user, or characters
        added = {token["content"] for token in theirs.get("added_tokens", [])}
        count, what = len({*theirs["model"]["vocab"], *added}), f"has {vocabulary_of(spec)} tokens"
        is_same = vocabulary_of(spec) == count
    if not is_same:
        raise ConfigError(
            f"model.params: {file}: is the tokenizer of the weights, and the data {what}; let the data "
            f"use this file (data.params.bpe.path), or take `weights: random`"
        )


def _with_weights(automatic: Any, folder: Path, config: Any) -> Any:
    """Return the model with the weights in the folder; those of a head for other data are new."""
    import torch

    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.params: {folder}: has no weights in safetensors files (*.safetensors); save the model there by "
            f"save_pretrained, or use `weights: random`"
        )
    network, report = automatic.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    new = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    base = f"{network.base_model_prefix}."
    lost = sorted(name for name in new if name.startswith(base) and "pooler" not in name)
    if lost:
        raise ConfigError(f"model.params: {folder}: lacks weights of this model: {_some(lost)}")
    if new:
        logger.info("%s: new weights, drawn at random: %s", folder, _some(sorted(new)))
    network.read_from_files = frozenset(network.state_dict().keys() - new)
    return network


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{', '.join(names[:SHOWN_NAMES])}{more}"


Prepared = tuple[tuple[Any, ...], dict[str, Any]]


def _token_arguments(kind: str) -> Any:
    """Return a hook that passes tokens [B, T] by name, with the mask of those that are no padding."""

    def prepare(module: nn.Module, inputs: tuple[Tensor], named: dict[str, Any]) -> Prepared:
        tokens = inputs[0].long()
        named = {**named, "input_ids": tokens}
        if kind == "AutoModelForSequenceClassification":
            named["attention_mask"] = (tokens != PAD).long()
        if tokens.is_meta:  # masks of two dimensions are looked into
            named["attention_mask"] = tokens.new_ones((len(tokens), 1, tokens.shape[1], tokens.shape[1])).bool()
        return (), named

    return prepare


def _image_arguments(folder: Path, spec: ModelSpec, *, is_random: bool) -> Any:
    """Return a hook that passes images [B, C, H, W], normalised as those that the weights were trained with."""
    scale, shift = (None, None) if is_random else _normalisation(folder, spec)

    def prepare(module: nn.Module, inputs: tuple[Tensor], named: dict[str, Any]) -> Prepared:
        (images,) = inputs
        if scale is not None:
            images = images * images.new_tensor(scale)[:, None, None] + images.new_tensor(shift)[:, None, None]
        return (), {**named, "pixel_values": images}

    return prepare


def _normalisation(folder: Path, spec: ModelSpec) -> tuple[list[float] | None, list[float] | None]:
    """Return factor and summand of each channel, from the normalisation of the data to that of the weights.

    None if the folder does not say how images are prepared, or the statistics of the data are not known yet. Raises
    ConfigError if the weights were trained with images of another size.
    """
    file = folder / "preprocessor_config.json"
    if not file.exists():
        logger.warning("%s does not exist: images are normalised by the data's mean and deviation", file)
        return None, None
    settings = json.loads(file.read_text())
    _check_size(folder, settings, spec)
    if not spec.std:
        return None, None
    factor = settings.get("rescale_factor", BYTES)
    if settings.get("do_rescale", True) and (spec.scale == 1 or abs(factor - BYTES) > 1e-6):
        raise ConfigError(
            f"model.params: {file}: the weights are for pixels from 0 to 1 (rescale_factor 1/255), and those of the "
            f"data have another range; store the images as bytes, or use `weights: random`"
        )
    is_normalised = settings.get("do_normalize", True)
    means, deviations = (
        _by_channel(settings[name], len(spec.mean)) if is_normalised else [default] * len(spec.mean)
        for name, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    parts = list(zip(spec.mean, spec.std, means, deviations, strict=True))
    return [std / other for _, std, _, other in parts], [(mean - own) / other for mean, _, own, other in parts]


def _by_channel(value: float | list[float], channels: int) -> list[float]:
    """Return a number for each channel, from one for all or one for each."""
    numbers = value if isinstance(value, list) else [value]
    return (numbers * channels)[:channels] if len(numbers) == 1 else numbers


def _check_size(folder: Path, settings: dict[str, Any], spec: ModelSpec) -> None:
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if not isinstance(size, dict) or not settings.get("do_resize", True):
        return
    shortest = size.get("shortest_edge")
    expected = (size.get("height", shortest), size.get("width", shortest))
    if None not in expected and spec.input_shape[1:] != expected:
        given = "x".join(map(str, spec.input_shape[1:]))
        raise ConfigError(
            f"model.params: {folder}: its weights are for images of {expected[0]}x{expected[1]} "
            f"(preprocessor_config.json), and those of the data have {given}; change the size of the data"
        )


def add_adapters(network: nn.Module, settings: Lora, *, trains_head: bool) -> None:
    """Freeze the weights that were read from files, and add trained matrices of a low rank beside them."""
    from peft import LoraConfig, inject_adapter_in_model

    base: Any = network
    prefix, read = f"{base.base_model_prefix}.", base.read_from_files
    before = {id(weight): name for name, weight in network.named_parameters(remove_duplicate=False)}
    targets = settings.target_modules or _linear_layers(network, prefix)
    lora: Any = {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT finds out itself how GPT-2 stores weights
            inject_adapter_in_model(LoraConfig(target_modules=targets, **lora), base)
    except ValueError as error:
        raise ConfigError(f"model.params.lora.target_modules: {' '.join(str(error).split())}") from error
    frozen = []
    for name, weight in network.named_parameters(remove_duplicate=False):
        old = before.get(id(weight))
        is_trained = old is None or (trains_head and not old.startswith(prefix)) or (bool(read) and old not in read)
        weight.requires_grad_(is_trained)
        frozen += [] if is_trained or old not in read else [name]
    base.read_from_files = frozenset(frozen)


def _linear_layers(network: nn.Module, prefix: str) -> list[str]:
    """Return the names of the linear layers without the head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = (nn.Linear, Conv1D)
    return [name for name, module in network.named_modules() if isinstance(module, layers) and name.startswith(prefix)]


def merged(network: nn.Module) -> nn.Module:
    """Return a copy in which each weight contains the product of the matrices beside it; the model if it has none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return network


@contextlib.contextmanager
def _rejected(folder: Path, what: str) -> Iterator[None]:
    """Raise ConfigError for what Transformers says of a folder."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "meta" in str(error):
            raise
        raise ConfigError(f"model.params: {folder}: {what}: {' '.join(str(error).split())[:300]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bars and no report of new weights, which are logged here."""
    from transformers.utils import logging

    theirs: Any = logging
    level, was_shown = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if was_shown:
            theirs.enable_progress_bar()
