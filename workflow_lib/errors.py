"""Every error a person can meet, and the exit code each one means.

EverstepError              1   failed: a bug, a broken disk, a run that cannot go on
├── UserError              2   the person's mistake: one message, no traceback, nothing lost
│   ├── ConfigError            an experiment file, a setting, a plugin name
│   └── DataError              a data file that cannot be used
├── StateError             1   a file of results/ or work/ that is not what was written there
├── CheckpointError        1   checkpoints exist, but none can be trusted
├── SaveError              1   a checkpoint could not be written
├── RankError              1   a rank died, hung or raised
├── DivergedError          1   a loss, a gradient or a metric is no longer a number
├── StalledError           1   attempt after attempt without a new step
└── TryAgain               75  saved; the same command goes on from here
    ├── Stopped                asked to stop: a signal or the deadline
    └── WorkspaceBusy          another live attempt owns the run
"""

from __future__ import annotations

import errno
import os

FULL = "The disk is full: free some space (`everstep clean` lists what no result needs)"
# what to do about errors of the system that nobody can foresee, by the words in which they are told
CURES = {
    os.strerror(errno.ENOSPC): FULL,
    "database or disk is full": FULL,  # SQLite
    os.strerror(errno.EDQUOT): "Your quota is used up: free some space (`everstep clean` lists what no result needs)",
    os.strerror(errno.EFBIG): "Raise the limit of the size of a file (`ulimit -f`)",
    os.strerror(errno.ENFILE): "The machine has too many open files",  # begins like the next
    os.strerror(errno.EMFILE): "Raise the limit of open files (`ulimit -n 4096`)",
    # so says Python's tempfile, which hides the error behind it
    "No usable temporary directory": "Raise the limit of open files (`ulimit -n 4096`) if it is low; else free space "
    "in one of them, or set TMPDIR to another",
    os.strerror(errno.EROFS): "The disk is mounted for reading only",
}

# errors of the system that say nothing about what a file holds: limits, permissions, a file server that is away
NOT_OF_THE_FILE = frozenset(
    (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EACCES, errno.EPERM),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN),
    )
)


def shortened(text: str, most: int = 80) -> str:
    """The text as a message quotes it: whole, or its beginning where it is long."""
    return text if len(text) <= most else text[: most - 3] + "..."


def with_cure(error: BaseException) -> str:
    """Return the message of the error; where it quotes an error of the system, with what to do about it."""
    text = str(error)
    cure = next((cure for words, cure in CURES.items() if words in text), None)
    return text if cure is None or cure in text else f"{text}. {cure}, and run the same command again"


class EverstepError(Exception):
    """Failed, with a message that says what to do."""

    exit_code = 1


class UserError(EverstepError):
    """What was given cannot be used; the message says what, where and what is allowed."""

    exit_code = 2


class ConfigError(UserError):
    """An experiment that cannot be run as written."""


class DataError(UserError):
    """A data file that cannot be used as it is."""


class StateError(EverstepError, ValueError):
    """A file of results/ or work/ is not what was written there."""


class CheckpointError(EverstepError):
    """Checkpoints exist, but none of them verifies."""


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read now, for a reason that says nothing about it: it may be whole."""


class SaveError(EverstepError):
    """A checkpoint could not be made durable."""


class RankError(EverstepError):
    """A training process died, hung or raised."""


class DivergedError(EverstepError):
    """A loss, a gradient or a metric is no longer a number."""


class StalledError(EverstepError):
    """Several attempts in a row ended without a newer step."""


class TryAgain(EverstepError):
    """Nothing is lost: the same command continues."""

    exit_code = 75


class Stopped(TryAgain):
    """The run stopped when asked, after saving."""


class WorkspaceBusy(TryAgain):
    """A live attempt owns the workspace; the message says which."""
