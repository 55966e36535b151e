"""The checks that `scripts/gpu-check` runs, each in its own process and folder."""
