"""Initial weights and patterns of weights, compared with a model on torch's meta device before any training.

torch is imported inside functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import models, plugins
from workflow_lib.errors import ConfigError
from workflow_lib.plan import RunConfig, model_check, prepared, trained_first, user_code
from workflow_lib.store.layout import WORK

if TYPE_CHECKING:
    from torch import Tensor, nn

ONLY_THE_TRAINING = "model.init: only the training can tell whether the names and shapes of weights fit the model"


def note(run: RunConfig, shapes: model_check.Shapes | None, root: Path) -> str | None:
    """Return a note if only the training can tell whether `model.init` fits the model, else None.

    Raises ConfigError if it does not fit.
    """
    init = run.model.init
    if init == type(init)():
        return None
    from workflow_lib.training import parameter_groups
    from workflow_lib.training.initial_weights import fit

    if init.run is not None:
        _check_base(run, _source_run(run))
    try:
        model, is_exact = _built(run, shapes)
        source, is_source_exact = _source(run, root)
    except ConfigError:
        raise
    except Exception:  # a model that needs real numbers fails on the meta device
        return ONLY_THE_TRAINING
    if model is None or source is None:
        return ONLY_THE_TRAINING
    parameter_groups.freeze(model, init.freeze)
    if init.source is not None:
        fit(model, source, init, only_names=not (is_exact and is_source_exact))
    named = model.named_parameters(remove_duplicate=False)
    parameter_groups.parameter_groups(init, ((name, weight) for name, weight in named if weight.requires_grad))
    return None


def _built(run: RunConfig, shapes: model_check.Shapes | None) -> tuple[nn.Module | None, bool]:
    """Return the model without memory, if its shapes can be given, and True if they are those of the data."""
    import torch

    if shapes is None:
        return None, False
    with torch.device("meta"):
        return models.build(run.model, shapes.spec), shapes.inputs and shapes.outputs


def _source(run: RunConfig, root: Path) -> tuple[dict[str, Tensor] | None, bool]:
    """Return the tensors that the run starts from, without memory, if they are known, and True if their shapes are."""
    from workflow_lib.training import parameter_groups
    from workflow_lib.training.initial_weights import read

    init = run.model.init
    if init.file is not None:
        return read(init.file, meta=True), True
    if init.run is None:
        return {}, True
    source = _source_run(run)
    known = plugins.facts_in_headers(source.data.name, source.data.params, root)
    shapes = model_check.shapes_of(source, known, prepared.manifest_path(source.data, root))
    model, is_exact = _built(source, shapes)
    if model is None:
        return None, is_exact
    if source.model.init.source is None:  # else it has written the frozen weights, and saves them
        parameter_groups.freeze(model, source.model.init.freeze)
    absent = models.not_saved(model)
    return {name: weight for name, weight in model.state_dict().items() if name not in absent}, is_exact


def _source_run(run: RunConfig) -> RunConfig:
    return trained_first([run], {}, WORK)[str(run.model.init.run)].config


def _check_base(run: RunConfig, source: RunConfig) -> None:
    """Raise ConfigError if both runs have frozen weights that no run saves, and read them from different content."""
    if not (_leaves_weights_in_files(run) and _leaves_weights_in_files(source)):
        return
    mine, theirs = (plugins.named_files("models", each.model.name, each.model.params) for each in (run, source))
    if mine != theirs and _contents(mine, "") != _contents(theirs, f" of {run.model.init.run}"):
        own, other = (", ".join(map(str, files.values())) for files in (mine, theirs))
        raise ConfigError(
            f"model.init.from: {run.model.init.run} was trained beside the frozen weights in {other}, and those in "
            f"{own} differ; give both runs the same files"
        )


def _leaves_weights_in_files(run: RunConfig) -> bool:
    """Return True if the run reads weights from files and never trains them: adapters, or patterns of `freeze`."""
    model = run.model
    return model.params.get("lora") is not None or (model.name == "transformers" and bool(model.init.freeze))


def _contents(files: dict[str, Path], whose: str) -> list[str]:
    return sorted(user_code.content_digest(path, f"model.params.{name}{whose}") for name, path in files.items())
