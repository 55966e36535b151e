"""Metadata of an exported model: its origin, the normalisation of its inputs, the meaning of its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from workflow_lib.data import Manifest


def describe(proto: onnx.ModelProto, identity: Mapping[str, Any], manifest: Manifest, metrics: dict[str, Any]) -> None:
    """Write the metadata into the graph: run, data, weights, names, normalisation, units and test metrics."""
    import onnx

    described = {
        **{f"everstep.{key}": value for key, value in identity.items()},
        "everstep.task": manifest.task,
        **{
            f"everstep.{name}": json.dumps(value, ensure_ascii=False)
            for name, value in manifest.model_dump(mode="json", include={"classes", "features", "vocabulary"}).items()
            if value
        },
        "everstep.normalisation": json.dumps({"scale": manifest.scale, "mean": manifest.mean, "std": manifest.std}),
        "everstep.metrics": json.dumps({name: metric["value"] for name, metric in metrics.items()}),
    }
    if manifest.target_std:
        units = {"mean": manifest.target_mean, "std": manifest.target_std}
        described["everstep.target"] = json.dumps({**units, "output": "in units of the data"})
    onnx.helper.set_model_props(proto, described)
    proto.producer_name = "everstep"
