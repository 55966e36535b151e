"""Training pipelines on Snakemake and SLURM that resume exactly: the names that plugins and callers may use.

A name is imported from its module when it is first used, so ``import workflow_lib`` stays fast. Everything else in the
package may change between versions.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_lib.data import (
        Feature,
        Inputs,
        MappedFiles,
        ModelSpec,
        Source,
        SourceFile,
        content_digest,
        from_arrays,
    )
    from workflow_lib.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DivergedError,
        EverstepError,
        RankError,
        SaveError,
        StalledError,
        StateError,
        Stopped,
        TryAgain,
        UserError,
        WorkspaceBusy,
    )
    from workflow_lib.interactive import (
        ComparedRuns,
        Experiment,
        ParameterGrid,
        Plan,
        Results,
        TrainedRun,
        compare,
        load,
        open_run,
        run_grid,
    )
    from workflow_lib.plugins import DatasetFacts, Section
    from workflow_lib.plugins.checksums import Checksums
    from workflow_lib.prediction import predict
    from workflow_lib.training.hooks import View
    from workflow_lib.training.step import Setup, TrainingStep
    from workflow_lib.training.step_context import Context

__version__ = "0.2.0"
__all__ = [
    "CheckpointError",
    "Checksums",
    "ComparedRuns",
    "ConfigError",
    "Context",
    "DataError",
    "DatasetFacts",
    "DivergedError",
    "EverstepError",
    "Experiment",
    "Feature",
    "Inputs",
    "MappedFiles",
    "ModelSpec",
    "ParameterGrid",
    "Plan",
    "RankError",
    "Results",
    "SaveError",
    "Section",
    "Setup",
    "Source",
    "SourceFile",
    "StalledError",
    "StateError",
    "Stopped",
    "TrainedRun",
    "TrainingStep",
    "TryAgain",
    "UserError",
    "View",
    "WorkspaceBusy",
    "__version__",
    "compare",
    "content_digest",
    "from_arrays",
    "load",
    "open_run",
    "predict",
    "run_grid",
]

MODULES = {  # of the public names
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "errors"),
    **dict.fromkeys(("Stopped", "TryAgain", "WorkspaceBusy"), "errors"),
    **dict.fromkeys(("ComparedRuns", "Experiment", "ParameterGrid", "Plan", "Results", "TrainedRun"), "interactive"),
    **dict.fromkeys(("compare", "load", "open_run", "run_grid"), "interactive"),
    "Checksums": "plugins.checksums",
    "DatasetFacts": "plugins",
    "Feature": "data",
    "Inputs": "data",
    "MappedFiles": "data",
    "ModelSpec": "data",
    "Context": "training.step_context",
    "Section": "plugins",
    "Setup": "training.step",
    "Source": "data",
    "SourceFile": "data",
    "TrainingStep": "training.step",
    "View": "training.hooks",
    "content_digest": "data",
    "from_arrays": "data",
    "predict": "prediction",
}

# CUDA numbers the GPUs as nvidia-smi and NVML do, instead of the fastest first. It reads this when it starts.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = value  # later uses do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
