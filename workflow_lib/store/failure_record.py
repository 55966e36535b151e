"""A training that is certain to fail in the same way is not tried again: its workspace has a record of the failure.

    rejected    certain at once: a setting, or what the model does with it, cannot be used
    diverged    certain at once where the kernels are deterministic, else when it came twice
    raised      certain when it came twice at one step from the same calls: the first may have been a passing fault

The record counts for the same settings, code, data, packages and kind of machine. Without a record, or with a damaged
one, the training is tried: a user may delete it.

Only the owner of a workspace writes its record. Interruptions (a signal, a limit, a kill, memory, a hang, a disk) leave
none, and are always tried again.
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
    """The last failure of the training of a workspace."""

    kind: str
    error: str  # class in `errors`
    message: str
    step: int | None
    place: str | None
    times: int  # in a row, in the same way
    is_certain: bool  # to come again, as long as nothing changes that it depends on
    depends_on: dict[str, str]  # digests
    attempt: str
    time: str

    def as_error(self) -> EverstepError:
        """Return the error that the attempt ended with."""
        error: EverstepError = getattr(errors, self.error)(self.message)
        return error


def read(workspace: Path) -> Failure | None:
    """Return how the training failed last; None without a record, or with a damaged one, which a warning names."""
    path = layout.failure_file(workspace)
    try:
        failure = files.decoded(Failure, files.read_json(path, *Failure.__annotations__))
        kind = getattr(errors, failure.error, None)
        if not (isinstance(kind, type) and issubclass(kind, EverstepError)):
            raise StateError(f"{path}: there is no error {failure.error}")
        return failure
    except FileNotFoundError:
        return None
    except (OSError, StateError, TypeError) as error:
        logger.warning("the record of an earlier failure cannot be read, and is passed over: %s", error)
        return None


def certain(workspace: Path, experiment: Experiment, caller: str) -> Failure | None:
    """Return the failure that would come again if the training was tried now; None where it is to be tried."""
    failure = read(workspace)
    if failure is None or not failure.is_certain:
        return None
    now = conditions(experiment, caller)
    if changed := sorted(name for name in now if failure.depends_on.get(name) != now[name]):
        logger.info("it failed at %s, and is tried again: %s changed since", failure.time, ", ".join(changed))
        return None
    return failure


def told(failure: Failure, workspace: Path) -> EverstepError:
    """Return the error of an attempt that is not made, since it would fail in the same way."""
    seen = f", as it has {failure.times} times at step {failure.step}" if failure.kind == "raised" else ""
    return type(failure.as_error())(
        f"{failure.message}. It failed so at {failure.time}, and is not tried again: it would fail in the same way"
        f"{seen}, since settings, code, data, packages and machine are the same. If the cause was another and is gone, "
        f"delete {layout.failure_file(workspace)} and run the same command again"
    )


def note(
    workspace: Path, cause: Cause, *, attempt: str, experiment: Experiment, caller: str, is_deterministic: bool
) -> None:
    """The workspace has a record of the failure. For the owner; a failure that may not come again leaves none.

    Where the disk refuses it, a warning says so: the training is then tried again.
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
        is_certain=isinstance(cause.error, ConfigError)  # damaged data, say, is made anew before the next attempt
        or (cause.kind == "diverged" and is_deterministic)
        or (cause.kind in ("raised", "diverged") and times > 1),
    )


def note_unbegun(workspace: Path, error: EverstepError, attempt: str) -> None:
    """The workspace says why its first attempt could not begin; trying that again costs nothing, and is allowed."""
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
        logger.warning("why the training failed is not on record: %s", error)


def forget(workspace: Path) -> None:
    """There is no record: the training has got beyond it."""
    try:
        layout.failure_file(workspace).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the record of an earlier failure stays: %s", error)


def conditions(experiment: Experiment, caller: str) -> dict[str, str]:
    """Digests of all that a failure depends on, besides what names the workspace: run, data, and the user's code.

    ``caller`` tells a training from trials, which may end earlier.
    """
    from workflow_lib.runtime import environment
    from workflow_lib.runtime.device import query_gpus

    of_run = {name: getattr(experiment, name).model_dump(mode="json") for name in ("runtime", "checkpoint", "data")}
    sources = {str(path.relative_to(PACKAGE)): files.file_digest(path) for path in sorted(PACKAGE.rglob("*.py"))}
    values: Mapping[str, Any] = {
        "the settings": [of_run, caller],
        "everstep": sources,
        "the packages": sorted((str(one.name), one.version) for one in metadata.distributions()),
        "the machine": {
            "system": [platform.system(), platform.machine(), platform.python_version()],
            "cpu": environment.cpu_name(),
            "gpus": sorted(gpu["name"] for gpu in query_gpus()) if experiment.runtime.device != "cpu" else [],
            # the first is set by a launcher itself: before and after, it is the same machine
            "variables": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | environment.kernel_variables(),
            "compiler": shutil.which(os.environ.get("CXX", "g++")),
        },
    }
    return {name: config.digest(value, "condition") for name, value in values.items()}
