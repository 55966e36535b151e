"""The chapter on errors: the test samples that the best run misjudges most, each with its name and its content."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import tasks
from workflow_lib.errors import DataError
from workflow_lib.report import samples
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import Row, RunResults

if TYPE_CHECKING:
    from workflow_lib.data import Manifest
    from workflow_lib.data.view import SplitView
    from workflow_lib.metrics.outcomes import Outcomes

logger = logging.getLogger(__name__)

SHOWN = 24
CONSIDERED = 200  # of which those with the same text as an earlier one are left out
# of kinds whose predictions are never simply right or wrong
TITLES = {
    "numbers": "Largest errors",
    "tokens": "Passages with the highest loss",
    "masks": "Images with the lowest IoU",
}


def read_outcomes(run: RunResults, results: Path) -> Outcomes | None:
    """Return the predictions of a run for the test split; None if its task or its result has none to read."""
    read = tasks.load(run.task).outcomes
    path = results_layout.run_dir(results, run.name) / results_layout.PREDICTIONS
    if read is None or not path.exists() or not path.stat().st_size:
        return None
    try:
        return read(path, run.evaluation)
    except DataError as error:  # written by an evaluation of the user's task
        logger.warning("no errors are shown: %s", error)
        return None


def errors_chapter(outcomes: Outcomes, manifest: Manifest, work: Path) -> Row:
    """Return the errors of a run, the most certain first, and how many there are."""
    import numpy as np

    order = np.argsort(-outcomes.wrong, kind="stable")[:CONSIDERED].tolist()
    numbers = [number for number in order if outcomes.wrong[number] > 0]
    split = samples.opened(manifest, "test", work) if numbers else None
    numbers, contents = _different(numbers, split, manifest)
    return {
        "title": TITLES.get(manifest.kind, "Most certain errors"),
        "certainty": outcomes.certainty,
        "headings": ("Tokens", "Correct") if manifest.kind == "tokens" else ("True", "Predicted"),
        "errors": [
            {"name": outcomes.name_of(number), **outcomes.told(number)._asdict(), **content}
            for number, content in zip(numbers, contents, strict=True)
        ],
        "count": int((outcomes.wrong > 0).sum()),
        "samples": len(outcomes),
        "is_counted": manifest.kind in ("classes", "labels"),
        "has_labels": manifest.kind == "labels",
        "has_images": any("image" in content for content in contents),
    }


def _different(numbers: list[int], split: SplitView | None, manifest: Manifest) -> tuple[list[int], list[Row]]:
    """Return the first samples, and their contents; of those with equal texts the first only."""
    if split is None or not manifest.has_tokens:
        numbers = numbers[:SHOWN]
        return numbers, samples.shown(split, manifest, numbers) if split is not None else [{} for _ in numbers]
    found: dict[str, int] = {}
    for number in numbers:
        if len(found) < SHOWN:
            found.setdefault(samples.shown(split, manifest, [number])[0]["text"], number)
    return list(found.values()), [{"text": text} for text in found]
