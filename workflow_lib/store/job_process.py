"""The process of a job without a lease, which its log names first, so that other commands can tell if it still runs."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from workflow_lib.files import decoded
from workflow_lib.store.events import NAME
from workflow_lib.store.lease import Holder

BEGINS = "begins: "
FIRST_BYTES = 1 << 10


def log_begin() -> None:
    """Log which process this is."""
    logging.getLogger(NAME).info("%s%s", BEGINS, json.dumps(asdict(Holder.this_process(""))))


def is_gone(log: Path) -> bool | None:
    """Return True if the process that the log names has ended, and None if this host cannot tell."""
    try:
        with log.open("rb") as file:
            first = file.read(FIRST_BYTES).decode(errors="replace").partition("\n")[0]
        holder = decoded(Holder, json.loads(first.partition(BEGINS)[2]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return holder.is_gone() if holder.is_of_this_host() else None
