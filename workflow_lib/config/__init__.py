"""The experiment file, the only source of settings: it is read, merged, validated and identified by a digest."""

from workflow_lib.config.compose import project_above
from workflow_lib.config.experiment import Experiment
from workflow_lib.config.identity import canonical, digest, identity
from workflow_lib.config.loading import is_frozen, load, validate
from workflow_lib.config.run import Data, Model
from workflow_lib.config.template import schema, template
from workflow_lib.plugins import Section

__all__ = [
    "Data",
    "Experiment",
    "Model",
    "Section",
    "canonical",
    "digest",
    "project_above",
    "identity",
    "is_frozen",
    "load",
    "schema",
    "template",
    "validate",
]
