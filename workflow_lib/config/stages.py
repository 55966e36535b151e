"""Version numbers of the pipeline's stages. Raise the number of a stage by hand when its results change."""

from __future__ import annotations

# Snakemake reruns the jobs of a stage whose number changes. `preprocess` and `train` are part of a run's digest.
STAGES = {
    "plan": 1,
    "preprocess": 2,
    "train": 2,
    "evaluate": 5,
    "suggest": 1,
    "export": 2,
    "report": 8,
    "track": 1,
    "register": 3,
}


def stages() -> dict[str, int]:
    """Return the numbers of the stages that are part of a run's digest."""
    return {name: STAGES[name] for name in ("preprocess", "train")}
