"""Conversion of a model to an ONNX graph; for the same weights and versions the graph is the same on any machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workflow_lib.errors import EverstepError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn


def convert(network: nn.Module, inputs: Tensor, opset: int | None = None, output: str = "logits") -> onnx.ModelProto:
    """Return the model as a graph, traced with the inputs. The batch size is dynamic, and so is a sequence's length."""
    import torch

    free = {0: torch.export.Dim("batch")}
    if not inputs.is_floating_point() and inputs.shape[1] > 1:
        free[1] = torch.export.Dim("sequence", min=1, max=inputs.shape[1])
    with _quiet_exporter():
        program = torch.onnx.export(
            network.cpu().eval(),
            (inputs,),
            dynamo=True,
            dynamic_shapes=(free,),
            input_names=["input"],
            output_names=[output],
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise EverstepError("torch.onnx.export returned no program")
    proto = program.model_proto
    _remove_origin(proto)
    return proto


def _remove_origin(proto: onnx.ModelProto) -> None:
    """Remove metadata that depends on the machine: the exporter writes source paths into every node."""
    graph = proto.graph
    nodes = (*graph.node, *(node for function in proto.functions for node in function.node))
    values = (*graph.input, *graph.output, *graph.initializer, *graph.value_info)
    for part in (proto, graph, *proto.functions, *nodes, *values):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's warnings about a missing torchvision and deprecated calls inside torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
