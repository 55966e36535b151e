"""Plugins."""

from workflow_lib.plugins.contract import (
    Known,
    code,
    described,
    known,
    looked_at,
    named_files,
    takes,
    task,
    text_digest,
)
from workflow_lib.plugins.loader import Inputs, PluginError, Task, available, blaming, load, load_hooks
from workflow_lib.plugins.section import Section, counts

__all__ = [
    "Inputs",
    "Known",
    "PluginError",
    "Section",
    "Task",
    "available",
    "blaming",
    "code",
    "counts",
    "described",
    "known",
    "load",
    "load_hooks",
    "looked_at",
    "named_files",
    "takes",
    "task",
    "text_digest",
]
