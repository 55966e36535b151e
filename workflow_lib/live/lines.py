"""Lines about events of the pipeline: one when a data set, a trial, a run or an evaluation is done, or has failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_lib import plugins
from workflow_lib.errors import shortened
from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.live.jobs import FAILED, FINISHED, STOPPED, Job
from workflow_lib.live.training import Training
from workflow_lib.results import layout
from workflow_lib.results.statements import DIVERGED
from workflow_lib.text import decimal, duration, training_place

LONGEST_REASON = 200  # characters; the message at the end has all of them


def of_job(job: Job, results: Path, *, is_brief: bool = False) -> str | None:
    """Return the line about a job that has just changed its state, or None if the user need not know.

    If it is to be brief, a run has one line, when it is evaluated.
    """
    if job.state == STOPPED:
        return f"{job.name}: {job.reason.partition('. ')[0] if job.reason.startswith('stopped') else 'stopped'}"
    if job.state == FINISHED:
        return _finished(job, results, is_brief=is_brief)
    if job.state == FAILED:
        if job.before is not None and job.before.reason == job.reason:
            return f"{job.name} failed again, for the same reason"
        return f"{job.name} failed: {shortened(job.reason, LONGEST_REASON)}"
    return f"{job.name} starts again" if job.before is not None else None


def _finished(job: Job, results: Path, *, is_brief: bool) -> str | None:
    """Return the result of a finished job, read from its statement."""
    try:
        match job.rule:
            case "preprocess":
                return f"{job.subject}: {_splits(read_json(layout.data_manifest(results, job.subject)))}"
            case "trial":
                study = layout.study_dir(results, job.wildcards["study"])
                return f"{job.name}: {_trial(study, int(job.wildcards['number']))}"
            case "train":
                training = read_json(layout.run_dir(results, job.subject) / layout.TRAIN)
                return None if is_brief and training.get("state") != DIVERGED else f"{job.name}: {_best(training)}"
            case "evaluate":
                evaluation = read_json(layout.run_dir(results, job.subject) / layout.EVALUATION)
                if evaluation.get("state") == DIVERGED:
                    return None
                if not is_brief:
                    return f"{job.name}: {_metric(evaluation)}"
                training = read_json(layout.run_dir(results, job.subject) / layout.TRAIN)
                return f"{job.subject}: {_best(training)}; {_metric(evaluation)}"
            case "best":
                best = read_json(layout.best_file(layout.study_dir(results, job.wildcards["study"])))
                return f"the study is done: trial {best['number']} is the best; `tuned` trains it in full"
    except (*UNREADABLE, KeyError):  # a file of another version
        return f"{job.name} is finished"
    return None


def _splits(manifest: Mapping[str, Any]) -> str:
    counts = dict.fromkeys(("train", "val", "test"), 0)
    for shard in manifest["shards"]:
        counts[shard["split"]] = max(counts[shard["split"]], shard["stop"])
    return ", ".join(f"{number:,} {split}" for split, number in counts.items()) + " samples"


def _trial(study: Path, number: int) -> str:
    trial, metric = (
        read_json(layout.trial_file(study, number)),
        read_json(layout.suggestion_file(study, number))["metric"],
    )
    value = (
        f"{metric} {decimal(trial['value'])} at {training_place(trial['epoch'], trial.get('step', 0))}"
        if trial["value"] is not None
        else ""
    )
    how = {"complete": "", "pruned": "pruned", "failed": f"failed: {trial['reason']}"}[trial["state"]]
    return "; ".join(filter(None, (value, how)))


def _best(training: Mapping[str, Any]) -> str:
    if training.get("state") == DIVERGED:
        return "diverged; the reason is in the report"
    best = training["best"]
    return f"{best['metric']} {decimal(best['value'])} at {training_place(best['epoch'], best['step'])}"


def _metric(evaluation: Mapping[str, Any]) -> str:
    """Return the first metric of the task, with its split and interval."""
    labels = {name: label for facts in plugins.all_facts().values() for name, label in facts.metrics.items()}
    name = next((name for name in labels if name in evaluation["metrics"]), next(iter(evaluation["metrics"])))
    metric = evaluation["metrics"][name]
    interval = f" [{decimal(metric['low'])}, {decimal(metric['high'])}]" if metric.get("low") is not None else ""
    split = "test" if evaluation["split"] == "test" else "validation"
    return f"{split} {labels.get(name, name)} {decimal(metric['value'])}{interval}"


def of_training(name: str, training: Training) -> str:
    """Return the progress of a training."""
    parts = [
        training.place,
        f"loss {decimal(training.loss)}" if training.loss is not None else "",
        f"{training.metric} {decimal(training.value)}" if training.value is not None else "",
        f"{training.samples_per_s:,.0f} samples/s" if training.samples_per_s else "",
        f"ETA {duration(training.left_s)}" if training.left_s is not None else "",
    ]
    return f"{name}: {', '.join(filter(None, parts))}"


def of_end(name: str, training: Training) -> str | None:
    """Return how the newest attempt of a training has ended, or None while it runs."""
    attempt = training.attempt
    if attempt is None or attempt.is_presumed_alive():
        return None
    if attempt.reason is None:
        return f"{name}: killed; it resumes from its last checkpoint"
    saved = f" at step {attempt.step:,}; saved" if attempt.reason.startswith("stopped") and attempt.step else ""
    return f"{name}: {attempt.reason}{saved}"
