"""A block of code in a forked process."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from workflow_lib.errors import EverstepError
from workflow_lib.store.orphans import exit_with_parent


@dataclass
class Child:
    """A forked process. In the child ``is_here`` is True; in the parent ``code`` becomes its exit code."""

    is_here: bool
    code: int = 0


@contextmanager
def forked(log: Path) -> Iterator[Child]:
    """Fork; both processes enter the block. The child, where ``is_here`` is True, logs to the file and exits after it.

    The child inherits all imports, so that many attempts import torch only once.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        child = Child(is_here=False)
        yield child
        child.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return
    code = 1
    try:
        exit_with_parent(parent)
        os.setsid()  # a signal to the process group of the attempt must not reach the parent
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        logging.getLogger().handlers.clear()
        yield Child(is_here=True)
        code = 0
    except (EverstepError, OSError) as error:
        with suppress(OSError):  # the disk of the log may be full
            print(error, file=sys.stderr, flush=True)
        code = getattr(error, "exit_code", 1)
    except BaseException:  # also sys.exit in the user's code: the child must not run on in the parent's frames
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def tail(log: Path) -> str:
    """Return the last five lines of the log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]) if log.exists() else ""
