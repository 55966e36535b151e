"""Conversion of a model to an ONNX graph; for the same weights and versions the graph is the same on any machine."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workflow_lib.errors import EverstepError, UserError

TOKENS = "tokens"  # name of the input of a text

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn
    from torch.onnx import ONNXProgram


def convert(
    network: nn.Module, inputs: Mapping[str, Tensor], opset: int | None = None, outputs: Sequence[str] = ("logits",)
) -> onnx.ModelProto:
    """Return the model as a graph, traced with the inputs. The batch size is free, and so is the length of tokens."""
    return optimized(trace(network, inputs, opset, outputs))


def trace(network: nn.Module, inputs: Mapping[str, Tensor], opset: int | None, outputs: Sequence[str]) -> ONNXProgram:
    """Return the model as `convert` does, but not optimized: nothing is computed from the weights.

    Raises UserError if the exporter cannot convert it.
    """
    import torch

    from workflow_lib.runtime.torch_internals import keep_export_table

    keep_export_table()
    batch, free = torch.export.Dim("batch"), []
    for name, values in inputs.items():
        free.append({0: batch})
        if name == TOKENS and values.shape[1] > 1:
            free[-1][1] = torch.export.Dim("sequence", min=1, max=values.shape[1])
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                network.cpu().eval(),
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=(tuple(free),),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(_not_converted(error)) from error
    if program is None:
        raise EverstepError("torch.onnx.export returned no program")
    return program


def _not_converted(error: BaseException) -> str:
    """Return the first line of what the exporter's error began with, and the line of the model where it happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    called = [frame for frame in frames if "/torch/" not in frame.filename and "/workflow_lib/" not in frame.filename]
    place = f" at {called[-1].filename}, line {called[-1].lineno}" if called else ""
    return (
        f"the model cannot be converted to ONNX{place}: {str(error).strip().partition(chr(10))[0]}. A graph has no"
        " branches on values of tensors, and no float() or .item() of them: use tensors and torch.where in `forward`."
        " The run is trained and evaluated; predict with it instead (everstep predict RUN)"
    )


def optimized(program: ONNXProgram) -> onnx.ModelProto:
    """Return the optimized graph; the program is changed. Constants are computed, and normalisations merged."""
    with _quiet_exporter():
        program.optimize()
    proto = program.model_proto
    remove_origin(proto)
    return proto


def remove_origin(proto: onnx.ModelProto) -> None:
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
