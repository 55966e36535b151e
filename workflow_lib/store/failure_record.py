"""The record of the last failure of a training, so that a training is not repeated if it would fail in the same way.

    rejected    certain to recur after one failure: a setting, or the model with it, cannot be used
    diverged    certain after one failure with deterministic kernels, otherwise after two
    raised      certain after two failures at the same step from the same calls: a single one may have been transient

The record is valid for the same settings, code, data, packages and kind of machine. Without a record, or with a damaged
one, the training starts, so a user can delete the record to try again.

Only the owner of a workspace writes its record. Interruptions (signal, time limit, kill, out of memory, hang, disk
error) are not recorded and can always be retried.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, errors, files
from workflow_lib.distributed.failures import Cause
from workflow_lib.errors import ConfigError, EverstepError, StateError
from workflow_lib.store import layout
from workflow_lib.store.attempts import list_attempts, utc_now

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

logger = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Failure:
    """The last failure of the training in a workspace."""

    kind: str
    error: str  # name of a class in `errors`
    message: str
    step: int | None
    place: str | None
    times: int  # consecutive failures of this kind at this step and place
    is_certain: bool  # recurs until something in `depends_on` changes
    depends_on: dict[str, str]  # digests, as returned by `conditions`
    attempt: str
    time: str

    def as_error(self) -> EverstepError:
        """Return the error that the attempt ended with."""
        error: EverstepError = getattr(errors, self.error)(self.message)
        return error


def read(workspace: Path) -> Failure | None:
    """Return the last failure; None without a record, or with a damaged one, after a warning."""
    path = layout.failure_file(workspace)
    try:
        failure = files.decoded(Failure, files.read_json(path, *Failure.__annotations__))
        kind = getattr(errors, failure.error, None)
        if not (isinstance(kind, type) and issubclass(kind, EverstepError)):
            raise StateError(f"{path}: {failure.error} is not the name of an error")
        return failure
    except FileNotFoundError:
        return None
    except (OSError, StateError, TypeError) as error:
        logger.warning("the record of an earlier failure cannot be read and is ignored: %s", error)
        return None


def find_certain(workspace: Path, experiment: Experiment, caller: str) -> Failure | None:
    """Return the recorded failure if it would recur under the current conditions; None if the training may start."""
    failure = read(workspace)
    if failure is None or not failure.is_certain:
        return None
    now = conditions(experiment, caller)
    if changed := sorted(name for name in now if failure.depends_on.get(name) != now[name]):
        logger.info(
            "the training failed at %s and is retried, since these have changed: %s", failure.time, ", ".join(changed)
        )
        return None
    return failure


def repeated_error(failure: Failure, workspace: Path) -> EverstepError:
    """Return the error to raise instead of starting an attempt that would fail in the same way."""
    times = f", as it has {failure.times} times at step {failure.step}" if failure.kind == "raised" else ""
    return type(failure.as_error())(
        f"{failure.message}. This failure of {failure.time} is not retried: it would fail in the same way{times}, "
        f"since settings, code, data, packages and machine are unchanged. If it had another cause, which is fixed, "
        f"delete {layout.failure_file(workspace)} and run the same command again"
    )


def record(
    workspace: Path, cause: Cause, *, attempt: str, experiment: Experiment, caller: str, is_deterministic: bool
) -> None:
    """Write the record of the failure, unless its cause was an interruption. Only the owner may call this.

    If the disk rejects the record, only a warning is logged, and the training can be started again.
    """
    if cause.kind == "failed":
        return
    now, before = conditions(experiment, caller), read(workspace)
    last = (before.kind, before.step, before.place, before.depends_on) if before else None
    times = before.times + 1 if before and last == (cause.kind, cause.step, cause.place, now) else 1
    _write(
        workspace,
        cause,
        attempt=attempt,
        times=times,
        depends_on=now,
        # other rejections may not recur: damaged data, for example, is prepared again before the next attempt
        is_certain=isinstance(cause.error, ConfigError)
        or (cause.kind == "diverged" and is_deterministic)
        or (cause.kind in ("raised", "diverged") and times > 1),
    )


def record_rejected_start(workspace: Path, error: EverstepError, attempt: str) -> None:
    """Record why the first attempt could not begin. The check is cheap, so it may be repeated."""
    if not list_attempts(workspace) and read(workspace) is None:
        _write(workspace, Cause("rejected", error), attempt=attempt, times=1, depends_on={}, is_certain=False)


def _write(workspace: Path, cause: Cause, **known: Any) -> None:
    failure = Failure(
        kind=cause.kind,
        error=type(cause.error).__name__,
        message=str(cause.error),
        step=cause.step,
        place=cause.place,
        time=utc_now(),
        **known,
    )
    try:
        files.write_signed(layout.failure_file(workspace), asdict(failure))
    except OSError as error:
        logger.warning("the reason of the failure could not be recorded: %s", error)


def delete(workspace: Path) -> None:
    """Delete the record, since the training has succeeded."""
    try:
        layout.failure_file(workspace).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the record of an earlier failure could not be deleted: %s", error)


def conditions(experiment: Experiment, caller: str) -> dict[str, str]:
    """Return digests of everything that a failure depends on, except for the run, the data and the user's code.

    Those are in the path of the workspace already. ``caller`` is included because a trial may end earlier than a
    training of the same run.
    """
    from workflow_lib.runtime import environment
    from workflow_lib.runtime.device import query_gpus

    settings = {name: getattr(experiment, name).model_dump(mode="json") for name in ("runtime", "checkpoint", "data")}
    sources = {str(path.relative_to(PACKAGE)): files.file_digest(path) for path in sorted(PACKAGE.rglob("*.py"))}
    values: Mapping[str, Any] = {
        "the settings": [settings, caller],
        "everstep": sources,
        "the packages": sorted((str(package.name), package.version) for package in metadata.distributions()),
        "the machine": {
            "system": [platform.system(), platform.machine(), platform.python_version()],
            "cpu": environment.cpu_name(),
            "gpus": sorted(gpu["name"] for gpu in query_gpus()) if experiment.runtime.device != "cpu" else [],
            # the launcher sets the first one itself, so its absence before that is no difference
            "variables": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | environment.kernel_variables(),
            "compiler": shutil.which(os.environ.get("CXX", "g++")),
        },
    }
    return {name: config.digest(value, "condition") for name, value in values.items()}
