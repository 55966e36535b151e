"""The checks that `scripts/gpu-check` makes, each in a process and a folder of its own."""
