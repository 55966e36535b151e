"""Set up the environment of every test: one thread per library, and no experiment from the shell."""

from __future__ import annotations

import os

import hypothesis

# before numpy and torch are imported; tests run in parallel
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("EVERSTEP_EXPERIMENT", None)

# the same examples in every run, without a time limit per example
hypothesis.settings.load_profile("ci")
