"""Results of which Snakemake has no record: `.snakemake` was moved away, or did not come along with a copied project.

Snakemake compares the settings of a result with its record, and takes a result without one for up to date. The names of
data, runs and studies contain their settings; those of other results do not, so these would keep the old ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# params of a rule whose values are in no name of its outputs
OF_SETTINGS = frozenset(("settings", "digest"))


def _is_compared(job: Any) -> bool:
    return not OF_SETTINGS.isdisjoint(job.params.keys())


def has_metadata(recorded: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return Snakemake's function for whether a job has records; it skips comparisons of one that has none."""
    return lambda persistence, job: _is_compared(job) or recorded(persistence, job)


def params_changed(changed: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """Return Snakemake's function for changed params; an output without a record is a `change`."""

    def with_unrecorded(persistence: Any, job: Any, file: Any = None) -> Any:
        found = changed(persistence, job, file)
        outputs = job.output if file is None else [file]
        unknown = {path for path in outputs if _is_compared(job) and persistence.metadata(path) is None}
        return (
            found | change(only_old=set(), only_new={"no record of the settings"}, files=unknown) if unknown else found
        )

    return with_unrecorded
