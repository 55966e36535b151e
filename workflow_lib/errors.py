"""Errors that a user can see, and their exit codes.

EverstepError              1   failed: a bug, a broken disk, a run that cannot continue
├── UserError              2   a mistake of the user: one message, no traceback, nothing lost
│   ├── ConfigError            in an experiment file, a setting, or a plugin
│   └── DataError              in a data file
├── StateError             1   a damaged file in results/ or work/
├── CheckpointError        1   checkpoints exist, but none verifies
│   └── UnreadableError        a checkpoint cannot be read now, but may be undamaged
├── SaveError              1   a checkpoint could not be written
├── RankError              1   a rank died, hung or raised
├── DivergedError          1   a loss, a gradient or a metric is not finite
├── StalledError           1   several attempts in a row without a new step
└── TryAgain               75  saved; the same command resumes
    ├── Stopped                by a signal or the deadline
    └── WorkspaceBusy          another live attempt owns the run
"""

from __future__ import annotations

import errno
import os

FULL = "The disk is full: free some space (`everstep clean` lists what no result needs)"
# what to do about errors of the operating system, by the text of their messages
ADVICE = {
    os.strerror(errno.ENOSPC): FULL,
    "database or disk is full": FULL,  # SQLite
    os.strerror(errno.EDQUOT): "Your quota is used up: free some space (`everstep clean` lists what no result needs)",
    os.strerror(errno.EFBIG): "Raise the limit of file sizes (`ulimit -f`)",
    os.strerror(
        errno.ENFILE
    ): "The machine has too many open files: end some programs",  # before EMFILE, whose text is a part of this one
    os.strerror(errno.EMFILE): "Raise the limit of open files (`ulimit -n 4096`)",
    # from Python's tempfile, which hides the error of the system
    "No usable temporary directory": "Raise the limit of open files (`ulimit -n 4096`) if it is low; else free space "
    "in one of them, or set TMPDIR to another",
    os.strerror(errno.EACCES): "Ask the owner for access, or work in a project of your own (`everstep new FOLDER`)",
    os.strerror(errno.EROFS): "The disk is mounted read-only: make it writable, or work in a copy of the folder",
}

# errors that do not mean that a file is damaged: limits, permissions, an unreachable file server
NOT_DAMAGE = frozenset(
    (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EACCES, errno.EPERM),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN),
    )
)


def shortened(text: str, most: int = 80) -> str:
    """Return the text, cut to `most` characters, for quoting in a message."""
    return text if len(text) <= most else text[: most - 3] + "..."


def with_advice(error: BaseException) -> str:
    """Return the message of the error, followed by what to do if it quotes a known error of the operating system."""
    text = str(error)
    advice = next((advice for words, advice in ADVICE.items() if words in text), None)
    return text if advice is None or advice in text else f"{text}. {advice}, and run the same command again"


class EverstepError(Exception):
    """Base of all errors of the package: the command failed. The message says what to do."""

    exit_code = 1


class UserError(EverstepError):
    """A mistake in a file, a setting or an argument. The message says what, where, and what is allowed."""

    exit_code = 2


class ConfigError(UserError):
    """A mistake in an experiment file, a setting or a plugin."""


class DataError(UserError):
    """A data file that cannot be used as it is; the file is not modified."""


class StateError(EverstepError, ValueError):
    """A file in results/ or work/ is damaged, or is not what the package wrote."""


class CheckpointError(EverstepError):
    """Checkpoints exist, but none of them verifies."""


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read now (limits, permissions, a file server), but may be undamaged."""


class SaveError(EverstepError):
    """A checkpoint could not be written to disk."""


class RankError(EverstepError):
    """A training process died, hung or raised."""


class DivergedError(EverstepError):
    """A loss, a gradient or a metric is not finite."""


class StalledError(EverstepError):
    """Several attempts in a row ended without a new step."""


class TryAgain(EverstepError):
    """Nothing is lost: the same command resumes."""

    exit_code = 75


class Stopped(TryAgain):
    """The run was stopped by a signal or the deadline, and has saved."""


class WorkspaceBusy(TryAgain):
    """A live attempt owns the workspace; the message names it."""
