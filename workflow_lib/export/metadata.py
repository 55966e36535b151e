"""Metadata of an exported model: its origin, its inputs, the meaning of its outputs, and the manifest of its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from workflow_lib import __version__, plugins
from workflow_lib.data import Manifest
from workflow_lib.errors import UserError
from workflow_lib.export import raw

if TYPE_CHECKING:
    import onnx

MANIFEST = "everstep.manifest"


def describe(proto: onnx.ModelProto, identity: Mapping[str, Any], manifest: Manifest, metrics: dict[str, Any]) -> None:
    """Write the metadata into the graph: run, data, weights, names, inputs, units, test metrics and the manifest."""
    import onnx

    named = manifest.model_dump(mode="json", include={"classes", "features"})
    described = {
        **{f"everstep.{key}": value for key, value in identity.items()},
        "everstep.version": __version__,
        "everstep.task": manifest.task,
        **{
            f"everstep.{name}": json.dumps(value, ensure_ascii=False)
            for name, value in (named | {"vocabulary": raw.vocabulary(manifest)}).items()
            if value
        },
        "everstep.inputs": json.dumps(raw.described(manifest), ensure_ascii=False),
        MANIFEST: json.dumps(_without_files(manifest), ensure_ascii=False, sort_keys=True),
        "everstep.metrics": json.dumps({name: metric["value"] for name, metric in metrics.items()}),
    }
    if manifest.target_std:
        units = {"mean": manifest.target_mean, "std": manifest.target_std}
        described["everstep.target"] = json.dumps({**units, "output": "in units of the data"})
    onnx.helper.set_model_props(proto, described)
    proto.producer_name = "everstep"


def manifest_of(metadata: Mapping[str, str], path: Path) -> Manifest:
    """Return the manifest in the metadata of an exported model. Raises UserError if there is none."""
    try:
        return Manifest.model_validate_json(metadata[MANIFEST])
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"{path}: was not exported by this version of Everstep: its metadata has no valid `{MANIFEST}`; export the "
            f"run again (snakemake --forcerun export)"
        ) from error


def _without_files(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest without shards and source files, and with the names of named files without their folders."""
    data = dict(manifest.data)
    named = plugins.named_files("data", data["name"], data["params"])
    data["params"] = {
        name: named[name].name if name in named else value for name, value in dict(data["params"]).items()
    }
    return manifest.model_copy(update={"shards": (), "sources": {}, "in_place": None, "data": data}).model_dump(
        mode="json"
    )
