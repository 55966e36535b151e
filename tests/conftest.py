"""Set up the environment of every test: one thread per library, and no experiment from the shell."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# before numpy and torch are imported; tests run in parallel
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("EVERSTEP_EXPERIMENT", None)

# as on a terminal, also if the tests run in the background of a script or under nohup
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# the same examples in every run, without a time limit per example
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Restore the package's logger, which a command that runs in the process of a test sets up for its own process."""
    log = logging.getLogger("workflow_lib")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)
