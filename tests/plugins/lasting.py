"""A user's model that starts threads or processes which outlive the training."""

from __future__ import annotations

import multiprocessing
import threading
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workflow_lib.plugins import Section

if TYPE_CHECKING:
    from torch import nn

    from workflow_lib.data import ModelSpec


class Params(Section):
    """The processes to start."""

    kind: Literal["thread", "process"] = Field(description="what does not end")


def build(params: Params, spec: ModelSpec) -> nn.Module:
    from torch import nn

    kind = threading.Thread if params.kind == "thread" else multiprocessing.Process
    kind(target=threading.Event().wait, name="uploader").start()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, spec.outputs))
