"""Graphs of networks that differ only in their weights: two are converted, and the others get their own weights.

The exporter may compute with weights, or choose by their values. Therefore a graph without its weights is used only
after two networks, all of whose weights in the graph differ, have given the same one. No weight in the graph may be
all zeros, all ones, or equal to another one, and weights that are not in the graph as they are must be equal in all
networks. A network for which this is not so is converted.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workflow_lib import config
from workflow_lib.export.graph import convert
from workflow_lib.files import blake2b, compact_json, write_atomic

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Weight(NamedTuple):
    """A tensor of a network; it is neutral if it is all zeros or all ones."""

    content: bytes
    shape: tuple[int, ...]
    dtype: str
    is_neutral: bool


def converting(
    folder: Path, about: str, convert: Callable[..., onnx.ModelProto] = convert
) -> Callable[..., onnx.ModelProto]:
    """Return a function like `convert`, which keeps graphs without weights in the folder and uses them.

    ``about`` is a digest of everything but the weights that decides a graph. Several processes may share the folder.
    """

    def converted(
        network: nn.Module, inputs: Mapping[str, Tensor], opset: int | None = None, outputs: Sequence[str] = ("logits",)
    ) -> onnx.ModelProto:
        weights = dict(_weights(network))
        kept = folder / config.digest([about, _described(network), opset, list(outputs)], "graph")
        for content in _agreed(kept):
            if (proto := _filled(content, weights)) is not None:
                logger.info("the graph is that of other runs, with the weights of this one")
                return proto
        proto = convert(network, inputs, opset, outputs)
        content, used = _without_weights(proto, weights)
        if _are_ordinary(used, weights):
            digests = {name: blake2b(weights[name].content).hexdigest() for name in sorted(used)}
            write_atomic(kept / uuid.uuid4().hex, [compact_json(digests), b"\n", content])
        return proto

    return converted


def _weights(network: nn.Module) -> Iterator[tuple[str, Weight]]:
    """Yield every tensor of the network with its name: parameters, buffers and attributes."""
    from torch import Tensor, uint8

    for place, module in network.named_modules():
        for name, value in (*vars(module).items(), *module._parameters.items(), *module._buffers.items()):
            if isinstance(value, Tensor) and value.numel():
                tensor = value.detach().cpu().contiguous()
                content = tensor.flatten().view(uint8).numpy().tobytes()
                is_neutral = bool((tensor == 0).all() or (tensor == 1).all())
                yield f"{place}.{name}", Weight(content, tuple(tensor.shape), str(tensor.dtype), is_neutral)


def _are_ordinary(used: set[str], weights: Mapping[str, Weight]) -> bool:
    """Return True if the exporter cannot treat one of these weights, or two of them, in a way of its own."""
    contents = [weight.content for weight in weights.values()]
    return not any(weights[name].is_neutral or contents.count(weights[name].content) > 1 for name in used)


def _described(network: nn.Module) -> list[Any]:
    """Return the modules of the network and their plain attributes, as JSON."""
    plain = (bool, int, float, str, tuple, list, dict, type(None))
    return [
        [place, f"{type(module).__module__}.{type(module).__qualname__}"]
        + sorted(
            f"{name}={value!r}" for name, value in vars(module).items() if isinstance(value, plain) and name[0] != "_"
        )
        for place, module in network.named_modules()
    ]


def _agreed(kept: Path) -> Iterator[bytes]:
    """Yield each graph without weights that was made from two networks without a common weight in it."""
    found: dict[bytes, list[dict[str, str]]] = {}
    for path in sorted(kept.glob("[!.]*")):
        digests, _, content = path.read_bytes().partition(b"\n")
        found.setdefault(content, []).append(json.loads(digests))
    for content, made_from in found.items():
        if any(_differ(*pair) for pair in combinations(made_from, 2)):
            yield content


def _differ(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    return all(first[name] != second[name] for name in first)


def _without_weights(proto: onnx.ModelProto, weights: Mapping[str, Weight]) -> tuple[bytes, set[str]]:
    """Return the graph with names of weights in their places, and these names."""
    import onnx

    bare, names = onnx.ModelProto(), {weight.content: name for name, weight in weights.items()}
    bare.CopyFrom(proto)
    used = set()
    for tensor in bare.graph.initializer:
        if (name := names.get(tensor.raw_data)) is not None and tuple(tensor.dims) == weights[name].shape:
            used.add(name)
            tensor.doc_string, tensor.raw_data = name, b""
    bare.doc_string = _rest(weights, used)
    return bare.SerializeToString(deterministic=True), used


def _filled(content: bytes, weights: Mapping[str, Weight]) -> onnx.ModelProto | None:
    """Return the graph with these weights; None if they do not belong into it."""
    import onnx

    proto = onnx.ModelProto.FromString(content)
    named = [tensor for tensor in proto.graph.initializer if tensor.doc_string]
    used = {tensor.doc_string for tensor in named}
    if not used <= weights.keys() or proto.doc_string != _rest(weights, used) or not _are_ordinary(used, weights):
        return None
    for tensor in named:
        tensor.raw_data, tensor.doc_string = weights[tensor.doc_string].content, ""
    proto.doc_string = ""
    return proto


def _rest(weights: Mapping[str, Weight], used: set[str]) -> str:
    """Return a digest of the weights that are not in the graph as they are, and of the shapes and types of all."""
    contents = {name: weight.content.hex() for name, weight in weights.items() if name not in used}
    return config.digest([contents, sorted([name, *map(str, weight[1:3])] for name, weight in weights.items())], "rest")
