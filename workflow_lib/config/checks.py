"""What no single setting can know: settings that contradict each other."""

from __future__ import annotations

from workflow_lib.config.sections import Experiment


def check(experiment: Experiment) -> list[str]:
    """A message for each contradiction."""
    return []
