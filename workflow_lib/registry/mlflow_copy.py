"""A copy of the registry in MLflow's: `<tracking.folder>/mlflow.db`, with the files of each version as artifacts.

The folder decides; MLflow repeats it. Each step can be repeated after a kill: a version is known by the tag of its
digest, which it gets in the transaction that creates it, after its artifacts are complete.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

from workflow_lib.config.registry import Registry
from workflow_lib.errors import EverstepError
from workflow_lib.registry.versions import Version
from workflow_lib.results import layout
from workflow_lib.trackers.mlflow import client

DIGEST, NUMBER = "everstep.digest", "everstep.version"
ARTIFACTS = "model"


def copy(settings: Registry, version: Version, champion: Version | None, folder: Path) -> dict[str, Any]:
    """Copy the version, and the alias if its holder is there; return name, version and source in MLflow."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock"):
            database = client(folder)
            copied = _version(database, settings.name, version, folder)
            if champion is not None and (held := _found(database, settings.name, champion.digest)) is not None:
                database.set_registered_model_alias(settings.name, settings.alias, held.version)
    except EverstepError:
        raise
    except Exception as error:  # MLflow has no common class of its errors
        first_line = str(error).partition("\n")[0]  # without the SQL statement
        raise EverstepError(
            f"MLflow's registry in {folder} cannot be written: {first_line}. The version is in {version.folder}; run "
            f"the same command again to copy it"
        ) from error
    return {"name": settings.name, "version": int(copied.version), "source": copied.source}


def _version(database: Any, name: str, version: Version, folder: Path) -> Any:
    if (found := _found(database, name, version.digest)) is not None:
        return found
    if not database.search_registered_models(f"name = '{name}'"):
        database.create_registered_model(name)
    run = _run(database, name, version, folder)
    for file in sorted(version.folder.iterdir()):
        database.log_artifact(run.info.run_id, str(file), ARTIFACTS)
    with tempfile.TemporaryDirectory() as temporary:
        database.log_artifact(run.info.run_id, _describe(run.info.run_id, Path(temporary)), ARTIFACTS)
    database.set_terminated(run.info.run_id)
    return database.create_model_version(
        name,
        source=f"{run.info.artifact_uri}/{ARTIFACTS}",
        run_id=run.info.run_id,
        description=f"{version.folder}, run {version.statement['run']}",
        tags={DIGEST: version.digest, NUMBER: str(version.number)},
    )


def _describe(run: str, folder: Path) -> str:
    """Write the file by which `mlflow.onnx` and `mlflow.pyfunc` load the ONNX graph; return its path."""
    from mlflow.models import Model

    model = Model(artifact_path=ARTIFACTS, run_id=run)
    providers = ["CPUExecutionProvider"]
    model.add_flavor("onnx", data=layout.ONNX, providers=providers, onnx_session_options=None)
    python = platform.python_version()  # without it, MLflow warns
    model.add_flavor("python_function", loader_module="mlflow.onnx", data=layout.ONNX, python_version=python)
    path = folder / "MLmodel"
    model.save(str(path))
    return str(path)


def _found(database: Any, name: str, digest: str) -> Any:
    found = database.search_model_versions(f"name = '{name}'")
    return next((version for version in found if version.tags.get(DIGEST) == digest), None)


def _run(database: Any, name: str, version: Version, folder: Path) -> Any:
    """Return the run that has the artifacts of the version, perhaps from an interrupted copy."""
    experiment = database.get_experiment_by_name(f"registry-{name}")
    number = (
        experiment.experiment_id
        if experiment
        else database.create_experiment(f"registry-{name}", artifact_location=(folder / "mlruns").absolute().as_uri())
    )
    found = database.search_runs([number], f"tags.`{DIGEST}` = '{version.digest}'", max_results=1)
    tags, own_name = {DIGEST: version.digest}, f"{name}-{version.number}"
    run = found[0] if found else database.create_run(number, tags=tags, run_name=own_name)
    for metric, measured in version.statement["metrics"].items():
        if measured["value"] is not None and f"test_{metric}" not in run.data.metrics:
            database.log_metric(run.info.run_id, f"test_{metric}", measured["value"])
    return run
