"""`everstep run`: the pipeline as a child process, and what it is doing, on a terminal or as plain lines."""

from workflow_lib.live.pipeline import detach, run, snakemake

__all__ = ["detach", "run", "snakemake"]
