"""The weights that a training starts from: read from a file or a folder, renamed, and compared with the model.

A file is safetensors, or one that `torch.save` wrote from a state dict; a folder is one of `save_pretrained`. Names and
shapes are compared before anything is read, also on the meta device, where neither model nor file takes memory.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workflow_lib import models
from workflow_lib.checkpoint.safetensors import NAMES
from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    from workflow_lib.config.init import Init

logger = logging.getLogger(__name__)

SHOWN = 5  # names of a kind that a message lists
NEAREST = 3
SAFETENSORS, TORCH = (".safetensors",), (".pt", ".pth", ".bin")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = "an experiment file (.yaml), the id of a run such as pre-0123456789ab, or a file or folder of weights"

Named = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Fit:
    """The weights of a model that a source has, and what does not fit.

    taken         name in the source of each weight that is taken, by its name in the model
    missing       names in the model that the source has not
    other_shape   names in the model that have another shape or kind of numbers in the source
    unused        names in the source that the model has not
    """

    taken: dict[str, str]
    missing: list[str]
    other_shape: dict[str, str]
    unused: list[str]


def load(model: nn.Module, init: Init, path: Path) -> dict[str, Any]:
    """Copy the weights at the path into the model; return and log the record of what was taken and what was not."""
    found = fit(model, read(path, meta=True), init)
    source, weights = read(path), model.state_dict(keep_vars=True)
    copied: dict[int, str] = {}  # a tied weight has several names
    with torch.no_grad():
        for name, from_name in found.taken.items():
            before = copied.setdefault(id(weights[name]), from_name)
            if before == from_name:
                weights[name].copy_(source[from_name])
            elif not torch.equal(source[before], source[from_name]):
                raise ConfigError(
                    f"model.init.from: {init.source}: {before} and {from_name} differ, and are one weight in the "
                    f"model; leave one of them out by model.init.map"
                )
    not_taken = [*found.missing, *found.other_shape]
    logger.info("starts from %s: %d weights%s", init.source, len(found.taken), _left(not_taken, found.unused))
    return {"from": init.source, "taken": len(found.taken), "not_taken": sorted(not_taken), "unused": found.unused}


def _left(not_taken: Sequence[str], unused: Sequence[str]) -> str:
    parts = [*_listed("drawn at random", not_taken), *_listed("not used", unused)]
    return "".join(f"; {part}" for part in parts)


def fit(model: nn.Module, source: Named, init: Init, *, only_names: bool = False) -> Fit:
    """Compare names and shapes of the model's weights and the source's. Both may be on the meta device.

    With ``only_names`` shapes are not compared, since those of the data are not known yet. Raises ConfigError if
    nothing fits, or, with ``strict``, unless every weight of the model is found. The frozen weights beside adapters
    need not be: the model has read them from its own files, and no run saves them.
    """
    weights = model.state_dict(keep_vars=True)
    renamed = _renamed(source, init)
    taken: dict[str, str] = {}
    other_shape: dict[str, str] = {}
    for name in weights.keys() & renamed.keys():
        mine, theirs = weights[name], source[renamed[name]]
        if only_names or (mine.shape == theirs.shape and mine.is_floating_point() == theirs.is_floating_point()):
            taken[name] = renamed[name]
        else:
            other_shape[name] = f"{_shape(theirs)} there, {_shape(mine)} in the model"
    tied = {id(weights[name]) for name in taken}
    base = models.not_saved(model)
    found = Fit(
        taken={name: taken[name] for name in weights if name in taken},
        missing=[name for name in weights if name not in {*renamed, *base} and id(weights[name]) not in tied],
        other_shape={name: other_shape[name] for name in weights if name in other_shape},
        unused=sorted(renamed[name] for name in renamed.keys() - weights.keys()),
    )
    if not taken or (init.strict and (found.missing or found.other_shape)):
        raise ConfigError(_message(found, init))
    return found


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _renamed(source: Iterable[str], init: Init) -> dict[str, str]:
    """Return the name in the source by the name in the model. Of several beginnings in `map` the longest counts."""
    names, beginnings = list(source), sorted(init.map, key=len, reverse=True)
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            near = ", ".join(difflib.get_close_matches(beginning, names, NEAREST, cutoff=0.0))
            raise ConfigError(
                f"model.init.map: no name in {init.source} begins with `{beginning}`; the nearest: {near}"
            )
    found: dict[str, str] = {}
    for name in names:
        beginning = next((known for known in beginnings if name.startswith(known)), "")
        replacement = init.map.get(beginning, beginning)
        if replacement is None:
            continue
        target = replacement + name.removeprefix(beginning)
        if target in found:
            raise ConfigError(f"model.init.map: {found[target]} and {name} both become {target}; leave one of them out")
        found[target] = name
    return found


def _message(found: Fit, init: Init) -> str:
    parts = [
        *_listed("missing", found.missing),
        *_listed("of another shape", [f"{name} ({why})" for name, why in found.other_shape.items()]),
        *_listed("only there", found.unused),
    ]
    if hint := _prefix_hint(found):
        parts.append(hint)
    what = "the model" if found.taken else "any weight of the model"
    ways = "rename by model.init.map" + ("; model.init.strict: false takes those that fit" if found.taken else "")
    return f"model.init.from: {init.source} does not fit {what}: {'; '.join(parts)} ({ways})"


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{what}: {', '.join(names[:SHOWN])}{more}"


def _prefix_hint(found: Fit) -> str:
    """Return the setting of `map` under which the first missing weight would be found, or an empty string."""
    for missing in found.missing[:1]:
        for name in found.unused:
            if name.endswith(f".{missing}"):
                return f'did you mean map: {{"{name.removesuffix(missing)}": ""}}?'
            if missing.endswith(f".{name}"):
                return f'did you mean map: {{"": "{missing.removesuffix(name)}"}}?'
            if (rest := _common_end(name, missing)) is not None:
                return f'did you mean map: {{"{name.removesuffix(rest)}": "{missing.removesuffix(rest)}"}}?'
    return ""


def _common_end(name: str, other: str) -> str | None:
    """Return the end that both names share from the second part on, if only their first parts differ."""
    rest = name.partition(".")[2]
    return rest if rest and rest == other.partition(".")[2] and "." in rest else None


def read(path: Path, *, meta: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors at the path by name, on the CPU; with ``meta`` only their shapes, on the meta device.

    Raises ConfigError if the file is missing, damaged, or of another kind.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in _files(path):
        tensors |= _read_safetensors(file, meta) if file.suffix in SAFETENSORS else _read_torch(file, meta)
    if not tensors:
        raise ConfigError(f"model.init.from: {path} holds no weights")
    return tensors


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"model.init.from: no such file: {path} (looked for in {Path.cwd()}); allowed: {KINDS}")
    if path.is_dir():
        if (path / INDEX).exists():
            try:
                parts = json.loads((path / INDEX).read_bytes())["weight_map"].values()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"model.init.from: {path / INDEX} is damaged: {error!r}") from error
            return [path / Path(str(part)).name for part in dict.fromkeys(parts)]
        if (path / WHOLE).exists():
            return [path / WHOLE]
        raise ConfigError(f"model.init.from: the folder {path} has neither {WHOLE} nor {INDEX}")
    if path.suffix not in (*SAFETENSORS, *TORCH):
        raise ConfigError(
            f"model.init.from: {path} holds no weights; allowed: {KINDS} ({', '.join((*SAFETENSORS, *TORCH))})"
        )
    return [path]


def _read_safetensors(path: Path, meta: bool) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if not meta:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: torch.empty(part.get_shape(), dtype=_dtype(path, name, part.get_dtype()), device="meta")
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model.init.from: {path} cannot be read as safetensors: {error}") from error


def _dtype(path: Path, name: str, short: str) -> torch.dtype:
    if short not in NAMES:
        raise ConfigError(f"model.init.from: {path}: {name} is {short}; allowed: {', '.join(NAMES)}")
    dtype: torch.dtype = getattr(torch, NAMES[short])
    return dtype


def _read_torch(path: Path, meta: bool) -> dict[str, torch.Tensor]:
    """Return the state dict in a file of `torch.save`; never runs code that is in it."""
    try:
        found = torch.load(path, map_location="meta" if meta else "cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"model.init.from: {path} is not a file of weights alone, so it is not loaded ({reason}); write it again "
            f"by torch.save(model.state_dict(), ...), or as .safetensors"
        ) from error
    if isinstance(found, Mapping) and all(isinstance(value, torch.Tensor) for value in found.values()):
        return {str(name): value for name, value in found.items()}
    keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise ConfigError(
        f"model.init.from: {path} holds more than a state dict ({keys:.120}); write the state dict alone: "
        f"torch.save(loaded[...], ...)"
    )
