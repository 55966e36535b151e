"""Graphs of networks that differ only in their weights: two are traced, and the others get their own weights.

What is shared is the graph before the optimizer of the exporter computes with the weights, for example to merge a batch
norm into a convolution. It is optimized with the weights of each network, so it has the bytes of an own conversion.

A trace may depend on values: a weight that is a constant in the graph, or one that decides which operators it has.
Therefore two networks must have given the same graph but for the weights in it, and another network may differ from
them only in weights in which the two differ. A network for which this is not so is traced.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config
from workflow_lib.export.graph import optimized, remove_origin, trace
from workflow_lib.files import blake2b, compact_json, write_atomic

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn
    from torch.onnx import ONNXProgram

logger = logging.getLogger(__name__)

COUNTERS = ("_value_counter", "_node_counter")  # of onnx_ir's NameAuthority, which a file of the graph does not have
PLACE = "weight"  # marks a tensor of a kept graph whose content is a weight of that name


def converting(folder: Path, about: str, trace: Callable[..., ONNXProgram] = trace) -> Callable[..., onnx.ModelProto]:
    """Return a function like `convert`, which keeps graphs without weights in the folder and uses them.

    ``about`` is a digest of everything but the weights that decides a graph. Several processes may share the folder.
    """

    def converted(
        network: nn.Module, inputs: Mapping[str, Tensor], opset: int | None = None, outputs: Sequence[str] = ("logits",)
    ) -> onnx.ModelProto:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(network)}
        digests = {name: blake2b(_bytes(weight)).hexdigest() for name, weight in weights.items()}
        kept = folder / config.digest([about, _described(network), _shapes(network), opset, list(outputs)], "graph")
        if (content := _agreed(kept, digests)) is not None:
            logger.info("the graph is that of other runs, with the weights of this one")
            return optimized(_filled(content, weights))
        program = trace(network, inputs, opset, outputs)
        if (numbers := _next_names(program)) is not None:
            content = _without_weights(program.model_proto, weights, numbers)
            write_atomic(kept / uuid.uuid4().hex, [compact_json(digests), b"\n", content])
        return optimized(program)

    return converted


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the network with its name: parameters, buffers and attributes."""
    from torch import Tensor

    for place, module in network.named_modules():
        for name, value in (*vars(module).items(), *module._parameters.items(), *module._buffers.items()):
            if isinstance(value, Tensor):
                yield f"{place}.{name}" if place else name, value


def _shapes(network: nn.Module) -> list[Any]:
    """Return name, type and shape of each tensor, and the first one that shares its memory, as JSON."""
    first: dict[int, str] = {}
    return [
        [name, str(tensor.dtype), list(tensor.shape), first.setdefault(tensor.data_ptr(), name)]
        for name, tensor in _tensors(network)
    ]


def _bytes(tensor: Tensor) -> bytes:
    from torch import uint8

    return tensor.flatten().view(uint8).numpy().tobytes() if tensor.numel() else b""


def _described(network: nn.Module) -> list[Any]:
    """Return the modules of the network and their plain attributes, as JSON; of private ones only numbers and texts."""
    single = (bool, int, float, str, type(None))
    plain = (*single, tuple, list, dict)
    return [
        [place, f"{type(module).__module__}.{type(module).__qualname__}"]
        + sorted(
            f"{name}={value!r}"
            for name, value in vars(module).items()
            if isinstance(value, single if name[0] == "_" else plain)
        )
        for place, module in network.named_modules()
    ]


def _agreed(kept: Path, mine: Mapping[str, str]) -> bytes | None:
    """Return a graph without weights that two networks gave which differ in all weights in which this one differs."""
    found: dict[bytes, list[dict[str, str]]] = {}
    for path in sorted(kept.glob("[!.]*")):
        digests, _, content = path.read_bytes().partition(b"\n")
        found.setdefault(content, []).append(json.loads(digests))
    for content, traced in found.items():
        for first, second in combinations(traced, 2):
            if _differing(first, mine) <= _differing(first, second):
                return content
    return None


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> set[str]:
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def _next_names(program: ONNXProgram) -> list[int] | None:
    """Return the numbers that the optimizer counts on from when it names values and nodes; None if they are unknown."""
    try:
        return [getattr(program.model.graph._name_authority, counter) for counter in COUNTERS]
    except AttributeError:
        return None


def _without_weights(proto: onnx.ModelProto, weights: Mapping[str, Tensor], numbers: list[int]) -> bytes:
    """Return the graph; tensors that are a weight, by name and content, have no content."""
    remove_origin(proto)
    proto.doc_string = json.dumps(numbers)
    for tensor in proto.graph.initializer:
        weight = weights.get(tensor.name)
        if weight is not None and tuple(tensor.dims) == tuple(weight.shape) and tensor.raw_data == _bytes(weight):
            tensor.doc_string, tensor.raw_data = PLACE, b""
    return proto.SerializeToString(deterministic=True)


def _filled(content: bytes, weights: Mapping[str, Tensor]) -> ONNXProgram:
    """Return the graph with these weights."""
    import onnx
    import onnx_ir
    from torch.onnx import ONNXProgram

    proto = onnx.ModelProto.FromString(content)
    for tensor in proto.graph.initializer:
        if tensor.doc_string == PLACE:
            tensor.raw_data, tensor.doc_string = _bytes(weights[tensor.name]), ""
    program = ONNXProgram(onnx_ir.from_proto(proto), None)
    for counter, number in zip(COUNTERS, json.loads(proto.doc_string), strict=True):
        setattr(program.model.graph._name_authority, counter, number)
    return program
