"""The inputs of an exported graph: values as users have them, before the preprocessing of the training.

    inputs       images and other arrays as the data set reads them: uint8 or float32 [batch, channels, ...]
    numbers      table: the numeric columns, float64 [batch, columns], NaN for a missing number
    categories   table: the other columns, strings [batch, columns]
    tokens       text: int64 [batch, sequence]; of a tokenizer its numbers, also that of the token that fills texts

The graph centres, marks missing numbers, numbers the categories, and normalises, as training did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_lib.data import Feature, Manifest
from workflow_lib.data.normalisation import Normalisation
from workflow_lib.data.padding import exchanged, filling_token
from workflow_lib.datasets._columns import ALWAYS
from workflow_lib.datasets._new_rows import encodings_of
from workflow_lib.datasets._notation import Notation
from workflow_lib.export.graph import TOKENS

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

INPUTS, NUMBERS, CATEGORIES = "inputs", "numbers", "categories"
CODES = "codes"  # numbers of the categories, between the two parts of the graph
NO_CATEGORY = float(1 << 24)  # for an unknown name where no category stands for it: an index that no model accepts
DEFAULT_MISSING = ("",)


@dataclass(frozen=True)
class Columns:
    """The columns of a table, and the places of their features in the inputs of the model."""

    features: tuple[Feature, ...]
    missing: tuple[str, ...] = DEFAULT_MISSING  # texts for a missing value, beside the empty one

    @classmethod
    def of(cls, manifest: Manifest) -> Columns:
        """Return the columns of a table."""
        missing = manifest.data["params"].get("missing") or DEFAULT_MISSING
        return cls(manifest.features, tuple(missing))

    @cached_property
    def marked(self) -> list[int]:
        """The numeric columns whose missing numbers are marked by a feature."""
        encodings = [encoding for encoding in encodings_of(self.features, Notation()) if not encoding.categories]
        return [number for number, encoding in enumerate(encodings) if encoding.has_missing]

    @cached_property
    def places(self) -> tuple[list[int], list[int], list[int]]:
        """The places of the numbers, of their marks, and of the categories."""
        numbers: list[int] = []
        marks: list[int] = []
        categories: list[int] = []
        place = 0
        for encoding in encodings_of(self.features, Notation()):
            (categories if encoding.categories else numbers).append(place)
            if encoding.has_missing and not encoding.categories:
                marks.append(place + 1)
            place += len(encoding.features)
        return numbers, marks, categories

    def texts(self, feature: Feature) -> dict[str, int]:
        """Return the number of each text of a categorical column."""
        if feature.categories[: len(ALWAYS)] != ALWAYS:
            return {name: number for number, name in enumerate(feature.categories)}
        names = feature.categories[len(ALWAYS) :]
        missing = dict.fromkeys((*DEFAULT_MISSING, *self.missing), 0)
        return missing | {name: number for number, name in enumerate(names, len(ALWAYS))}

    def described(self) -> dict[str, Any]:
        """Return the names of the columns, in the order of the inputs, and the texts for a missing category."""
        numbers, _, categories = self.places
        named = {NUMBERS: numbers, CATEGORIES: categories}
        listed = {name: [self.features[place].name for place in places] for name, places in named.items()}
        return {**listed, "missing": list(self.missing)}


def feeds(manifest: Manifest, stored: np.ndarray) -> dict[str, np.ndarray]:
    """Return the inputs of the graph, by name, for inputs as they are stored."""
    if manifest.has_tokens:
        return {TOKENS: exchanged(stored.astype(np.int64), filling(manifest))}
    if not manifest.features:
        return {INPUTS: stored}
    columns = Columns.of(manifest)
    numbers, _, categories = columns.places
    centres = np.array([columns.features[place].centre for place in numbers])
    given: dict[str, np.ndarray] = {}
    if numbers:
        given[NUMBERS] = stored[:, numbers].astype(np.float64) + centres
    if categories:
        texts = [_texts(columns, columns.features[place], stored[:, place]) for place in categories]
        given[CATEGORIES] = np.array(texts, dtype=object).T
    return given


def _texts(columns: Columns, feature: Feature, codes: np.ndarray) -> list[str]:
    """Return a text for each number of a category; for an unknown category one that no other number has."""
    known = columns.texts(feature)
    text_of = {number: text for text, number in reversed(known.items())}
    unknown = ALWAYS[1]
    while unknown in known:
        unknown += "?"
    return [text_of.get(int(code), unknown) for code in codes.tolist()]


def traced(manifest: Manifest, stored: Tensor) -> dict[str, Tensor]:
    """Return the inputs of the part of the graph that torch traces: categories are numbers."""
    import torch

    if manifest.has_tokens:
        return {TOKENS: exchange_zero(filling(manifest))(stored.long())}
    if not manifest.features:
        return {INPUTS: stored}
    numbers, _, categories = Columns.of(manifest).places
    given = {NUMBERS: stored[:, numbers].to(torch.float64), CODES: stored[:, categories].to(torch.float32)}
    return {name: values for name, values in given.items() if values.shape[1]}


def whole(network: nn.Module, manifest: Manifest, probabilities: Callable[[Tensor], Tensor] | None) -> nn.Module:
    """Return the network with the preprocessing before it, and with the probabilities as its second output."""
    import torch
    from torch import nn

    normalise = Normalisation(manifest, torch.device("cpu"))
    assemble = _assembling(Columns.of(manifest)) if manifest.features else exchange_zero(filling(manifest))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            outputs: Tensor = self.network(normalise(assemble(*given)))
            return outputs if probabilities is None else (outputs, probabilities(outputs))

    return Whole()


def filling(manifest: Manifest) -> int:
    """Return the number that the token that fills texts with answers has outside of the data."""
    return filling_token(manifest.tokenizer) if manifest.has_tokens and manifest.kind != "tokens" else 0


def vocabulary(manifest: Manifest) -> list[str]:
    """Return the tokens of a text in the order of their numbers in the inputs of the graph."""
    names, number = list(manifest.vocabulary), filling(manifest)
    if number:
        names[0], names[number] = names[number], names[0]
    return names


def exchange_zero(number: int) -> Callable[[Tensor], Tensor]:
    """Return a function that exchanges token 0 with this one, or does nothing for 0."""
    import torch

    if number == 0:
        return lambda stored: stored
    return lambda stored: torch.where(stored == 0, number, torch.where(stored == number, 0, stored))


def _assembling(columns: Columns) -> Callable[..., Tensor]:
    """Return a function that makes the stored features of `numbers` and `codes`."""
    import torch

    numbers, marks, categories = columns.places
    order = torch.tensor(np.argsort([*numbers, *marks, *categories]))
    centres = torch.tensor([columns.features[place].centre for place in numbers], dtype=torch.float64)
    marked = torch.tensor(columns.marked, dtype=torch.int64)

    def assemble(*given: Tensor) -> Tensor:
        parts = list(given[-1:]) if categories else []
        if numbers:
            values = (given[0] - centres).to(torch.float32)
            missing = [values.index_select(1, marked).isnan().to(torch.float32)] if marks else []
            parts = [values, *missing, *parts]
        return torch.cat(parts, dim=1).index_select(1, order)

    return assemble


def read_categories(proto: onnx.ModelProto, manifest: Manifest) -> None:
    """Replace the input of the numbers of categories by one of their names."""
    from onnx import TensorProto, helper

    columns = Columns.of(manifest)
    _, _, places = columns.places
    if not manifest.features or not places:
        return
    graph, nodes, parts = proto.graph, [], []
    for column, place in enumerate(places):
        feature = columns.features[place]
        known, at = columns.texts(feature), f"{CATEGORIES}_{column}"
        index = helper.make_tensor(f"{at}_index", TensorProto.INT64, [1], [column])
        graph.initializer.append(index)
        nodes.append(helper.make_node("Gather", [CATEGORIES, index.name], [at], name=f"{at}_column", axis=1))
        nodes.append(
            helper.make_node(
                "LabelEncoder",
                [at],
                [f"{at}_code"],
                name=f"{at}_encoder",
                domain="ai.onnx.ml",
                keys_strings=list(known),
                values_floats=[float(number) for number in known.values()],
                default_float=1.0 if feature.categories[: len(ALWAYS)] == ALWAYS else NO_CATEGORY,
            )
        )
        parts.append(f"{at}_code")
    nodes.append(helper.make_node("Concat", parts, [CODES], name="categories_codes", axis=1))
    (codes,) = (value for value in graph.input if value.name == CODES)
    batch = codes.type.tensor_type.shape.dim[0].dim_param
    graph.input.remove(codes)
    graph.input.append(helper.make_tensor_value_info(CATEGORIES, TensorProto.STRING, [batch, len(places)]))
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *own])
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


def described(manifest: Manifest) -> Mapping[str, Any]:
    """Return what a user must know to make the inputs, for the metadata."""
    if manifest.has_tokens:
        most, number = manifest.spec.input_shape[0], filling(manifest)
        return {"names": [TOKENS], "type": "int64", "most": most} | ({"filling": number} if number else {})
    if manifest.features:
        return Columns.of(manifest).described()
    return {"names": [INPUTS], "type": manifest.dtype, "shape": list(manifest.input_shape)}
