"""What every test finds: one thread a library, and no experiment left over from the shell."""

from __future__ import annotations

import os

import hypothesis

# Set before numpy or torch are imported: tests run beside each other.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.pop("EVERSTEP_EXPERIMENT", None)

# The same examples in every run, and no bound on the time that one takes.
hypothesis.settings.load_profile("ci")
