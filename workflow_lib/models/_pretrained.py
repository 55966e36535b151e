"""Loading of models of Hugging Face Transformers: their heads and their preprocessing."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib.data.padding import filling_token
from workflow_lib.errors import ConfigError
from workflow_lib.models._pretrained_images import Prepared, image_arguments
from workflow_lib.plugins import task_facts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workflow_lib.data import ModelSpec

logger = logging.getLogger(__name__)

FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a model of the hub: no code, no pickles
SHOWN_NAMES = 6


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
    if _is_image(spec):
        prepare = image_arguments(folder, spec, is_random=is_random)
    else:
        _check_length(folder, spec, network)
        if not is_random:
            _check_tokenizer(folder, spec)
        if task_facts(spec.task).answers == "token":
            _check_order(folder, spec, network)
        prepare = _token_arguments(network, spec)
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
        if name == "image_size" and isinstance(found, list | tuple):
            found = found[0] if len(set(found)) == 1 else tuple(found)
        if is_random:
            setattr(config, name, needed)
        elif found != needed and not (name == "vocab_size" and found > needed):
            raise ConfigError(
                f"model.params: {folder}: its {name} is {found}, and the data needs {needed}; change the settings of "
                f"the data, or use `weights: random`"
            )
    if _kind(spec) == "AutoModelForCausalLM" and hasattr(config, "is_decoder"):
        config.is_decoder = True  # else a model such as BERT would also see the tokens that it predicts
    if _kind(spec) == "AutoModelForSequenceClassification":
        if config.is_encoder_decoder:
            raise ConfigError(
                f"model.params: {folder}: is an encoder with a decoder; use an encoder such as BERT, or a decoder such "
                f"as GPT-2"
            )
        filling = filling_token(spec.tokenizer)
        if not is_random and config.pad_token_id not in (filling, None):
            raise ConfigError(
                f"model.params: {folder}: fills texts with token {config.pad_token_id}, and the data with {filling}; "
                f"name the token of the model in data.params.bpe.pad, or use `weights: random`"
            )
        config.pad_token_id = filling
    return config


def _positions(network: nn.Module) -> nn.Embedding | None:
    """Return the embedding of positions that are counted from the number of the padding token on, as in RoBERTa."""
    from torch import nn

    named = (module for name, module in network.named_modules() if name.endswith("position_embeddings"))
    return next((m for m in named if isinstance(m, nn.Embedding) and m.padding_idx is not None), None)


def _check_length(folder: Path, spec: ModelSpec, network: nn.Module) -> None:
    """Raise ConfigError if the texts of the data are longer than those that the model reads."""
    config: Any = network.config
    (length,), longest = spec.input_shape, getattr(config, "max_position_embeddings", None)
    if (positions := _positions(network)) is not None:
        longest = positions.num_embeddings - int(positions.padding_idx or 0) - 1
    if longest is not None and 0 <= longest < length:  # XLNet has no limit, which it writes as -1
        raise ConfigError(
            f"model.params: {folder}: reads at most {longest} tokens, and the data has texts of {length}; shorten "
            f"them in the settings of the data"
        )


def _check_order(folder: Path, spec: ModelSpec, network: nn.Module) -> None:
    """Raise ConfigError if the outputs for a token depend on a later one: the model would see what it predicts."""
    import torch

    (length,), was_training = spec.input_shape, network.training
    tokens = torch.zeros((2, min(length, 4)), dtype=torch.long)
    tokens[1, -1] = 1
    if tokens.is_meta or length < 2 or spec.outputs < 2:
        return
    with torch.no_grad():
        first, second = network.eval()(input_ids=tokens).logits[:, :-1]
    network.train(was_training)
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4 * float(first.std())):
        raise ConfigError(
            f"model.params: {folder}: its outputs for a token depend on later tokens, so it cannot learn to predict "
            f"the next one; use a model such as GPT-2"
        )


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


def _token_arguments(network: nn.Module, spec: ModelSpec) -> Any:
    """Return a hook that passes tokens [B, T] by name, with the mask of those that are no padding."""
    import torch

    is_padded = task_facts(spec.task).answers != "token"
    filling = filling_token(spec.tokenizer) if is_padded else 0
    positions = None if is_padded else _positions(network)
    takes_whole_mask = _takes_whole_mask(network, spec)

    def prepare(module: nn.Module, inputs: tuple[Tensor], named: dict[str, Any]) -> Prepared:
        tokens = inputs[0].long()
        if is_padded:
            named["attention_mask"] = (tokens != 0).long()
        if filling:  # the numbers of the tokenizer
            tokens = torch.where(tokens == 0, filling, torch.where(tokens == filling, 0, tokens))
        named = {**named, "input_ids": tokens}
        if positions is not None:  # every token counts, also that which would fill texts
            named["position_ids"] = _counted(tokens, int(positions.padding_idx or 0) + 1)
        if tokens.is_meta and takes_whole_mask:
            named["attention_mask"] = _whole_mask(tokens)
        return (), named

    return prepare


def _counted(tokens: Tensor, first: int) -> Tensor:
    """Return the positions of tokens [B, T], counted from the first one."""
    import torch

    return torch.arange(first, first + tokens.shape[1], device=tokens.device).expand(tokens.shape)


def _takes_whole_mask(network: nn.Module, spec: ModelSpec) -> bool:
    """Return True on the meta device if the model takes a mask of four dimensions.

    Most models look into a mask of two dimensions, which has no values there; others take no other one.
    """
    import torch

    tokens = torch.zeros((2, *spec.input_shape), dtype=torch.long)
    if tokens.is_meta:
        with contextlib.suppress(Exception), torch.no_grad():
            network(input_ids=tokens, attention_mask=_whole_mask(tokens))
            return True
    return False


def _whole_mask(tokens: Tensor) -> Tensor:
    samples, length = tokens.shape
    return tokens.new_ones((samples, 1, length, length)).bool()


@contextlib.contextmanager
def _rejected(folder: Path, what: str) -> Iterator[None]:
    """Raise ConfigError for what Transformers says of a folder."""
    from workflow_lib.runtime.torch_internals import needs_numbers

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if needs_numbers(error):
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
