"""User code and files of a run: its model, its hooks, and the files that the model's settings name.

Their digest, like that of the data, is part of the name of a run's workspace: changed code trains in a new one. The
workspace records the text of the code, so that `everstep explain` can show the lines that differ. The user can accept a
finished result for changed code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workflow_lib import config, files, plugins
from workflow_lib.config.step import file_arguments
from workflow_lib.errors import ConfigError
from workflow_lib.plan import RunConfig
from workflow_lib.plan.sources import INIT
from workflow_lib.plugins import source_digest

CodeRecord = dict[str, Any]  # content of code.json in a workspace: digest, code, files


def of(run: RunConfig) -> dict[str, source_digest.Code]:
    """Return the code of the run's model and, if it has hooks, of its hooks."""
    modules = {"model": plugins.load("models", run.model.name)}
    if run.training.hooks is not None:
        modules["hooks"] = plugins.load_hooks(run.training.hooks)
    code = {kind: plugins.code(module) for kind, module in modules.items()}
    return code | {kind: plugins.object_code(kind, target) for kind, target in objects_of(run).items()}


def modules_of(run: RunConfig) -> dict[str, Path]:
    """Return the files of the modules that the run's settings name, by the names of the modules."""
    found = {plugins.load("data", run.data.name).__name__, plugins.load("models", run.model.name).__name__}
    if run.training.hooks is not None:
        found.add(plugins.load_hooks(run.training.hooks).__name__)
    for kind, target in objects_of(run).items():
        plugins.load_object(kind, target)
        found.add(target)
    modules = {name: sys.modules.get(name) for name in (target.partition(":")[0] for target in found)}
    return {name: Path(module.__file__) for name, module in modules.items() if module and module.__file__}


def objects_of(run: RunConfig) -> dict[str, str]:
    """Return the import paths `package.module:Name` that the run's settings name, by what they are used for."""
    named = {
        "task": plugins.task(run.data.name, run.data.params),
        "optimizer": run.optimizer.name,
        "schedule": run.schedule.name,
        "loss": run.training.loss,
        "step": run.training.step,
        **{f"metric {metric.label}": metric.name for metric in run.training.metrics},
    }
    return {kind: name for kind, name in named.items() if name is not None and plugins.is_object_path(name)}


def files_of(run: RunConfig) -> dict[str, Path]:
    """Return the files that the settings of the run's model and of its training step name, by setting."""
    of_step = file_arguments(run.training.step, run.training.step_params)
    return {
        **plugins.named_files("models", run.model.name, run.model.params),
        **{f"step_params.{name}": path for name, path in of_step.items()},
        **({} if run.model.init.file is None else {INIT: run.model.init.file}),
    }


def digest(run: RunConfig, weights: Mapping[str, str] | None = None) -> str:
    """Return the digest of the run's code and of the content of its files: 32 hex digits.

    `weights` are the digests of the weights of other runs that it uses, by setting. Raises ConfigError if a file of
    the settings is missing.
    """
    return digest_of(of(run), _content(run, weights))


def _content(run: RunConfig, weights: Mapping[str, str] | None) -> dict[str, str]:
    return {**{name: content_digest(path, _setting(name)) for name, path in files_of(run).items()}, **(weights or {})}


def _setting(name: str) -> str:
    """Return the key path of a setting of `files_of`."""
    return name if name == INIT else f"training.{name}" if name.startswith("step_params.") else f"model.params.{name}"


def digest_of(code: dict[str, source_digest.Code], named: dict[str, str]) -> str:
    """Return the digest of code and of the digests of named files."""
    return config.digest({"code": {kind: part.digest for kind, part in code.items()}, "files": named}, "code")


def state(run: RunConfig) -> str:
    """Return a text that changes whenever the digest does, without reading large files."""
    named = {name: files.file_state(path) for name, path in files_of(run).items()}
    return config.digest([{kind: part.digest for kind, part in of(run).items()}, named], "code")


def memo(digest: Callable[[RunConfig], str] = digest) -> Callable[[RunConfig], str]:
    """Return the function with a cache, which reads the code of each model and its hooks once for many runs."""
    cache: dict[str, str] = {}

    def of_run(run: RunConfig) -> str:
        model = run.model.model_dump(mode="json")
        key = config.canonical([model, run.training.hooks, run.training.step_params, objects_of(run)])
        if key not in cache:
            cache[key] = digest(run)
        return cache[key]

    return of_run


def content_digest(path: Path, setting: str) -> str:
    """Return the digest of a file's content, or of the names and contents of a folder's files that are not hidden.

    Raises ConfigError, which names the setting, if there is neither.
    """
    if not path.exists():
        raise ConfigError(f"{setting}: no such file: {path} (looked for in {Path.cwd()})")
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not is_hidden(file.relative_to(path))]
        return config.digest([[str(file.relative_to(path)), files.file_digest(file)] for file in inside], "folder")
    return files.file_digest(path)


def is_hidden(path: Path) -> bool:
    """Return True if a part of the path starts with a dot."""
    return any(part.startswith(".") for part in path.parts)


def record(run: RunConfig, weights: Mapping[str, str] | None = None) -> CodeRecord:
    """Return the record of the run's current code for its workspace; `weights` as for `digest`."""
    code, named = of(run), _content(run, weights)
    texts = {kind: {"digest": part.digest, "texts": part.texts} for kind, part in code.items()}
    return {"digest": digest_of(code, named), "code": texts, "files": named}
