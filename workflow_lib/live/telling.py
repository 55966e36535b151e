"""Tells people about a pipeline that Snakemake itself could not tell about: it was killed, or did not even begin."""

from __future__ import annotations

import os
from pathlib import Path

from workflow_lib import config, notify
from workflow_lib.errors import EverstepError
from workflow_lib.live.jobs import Pipeline
from workflow_lib.results import layout
from workflow_lib.store.layout import WORK


def tell_failure(reason: str, pipeline: Pipeline, given: Path | None, *, is_watched: bool, resume: str) -> None:
    """Tell that the pipeline has failed, if its experiment has `notify` and nobody has told it yet.

    Nothing is told to a user who watches a pipeline that has not begun. `given` is the experiment's file, for a
    pipeline that ended before it named its frozen one.
    """
    path = pipeline.experiment or given
    if path is None or pipeline.has_told or (is_watched and not pipeline.has_started):
        return
    try:
        experiment = config.load([path], [])
        if experiment.notify is None:
            return
        notify.check_environment(experiment.notify, os.environ)
    except (EverstepError, OSError):  # that is the reason itself
        return
    results = layout.RESULTS / experiment.name
    notifier = notify.Notifier(experiment.notify, results, WORK, environment=os.environ, say=print)
    notifier.fail([notify.Failure("pipeline", reason, "")], path.stem, resume)
