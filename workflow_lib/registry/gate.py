"""The decision whether a version gets an alias: only if it is better than the one that has it, by more than noise.

Both are measured on the same test samples, which are recognised by the digest of the test split. A paired bootstrap
says how the difference would vary with other samples; it says nothing about other seeds. Metrics that an experiment
adds cannot be computed from predictions.csv: their intervals must not overlap, which asks for more.
"""

from __future__ import annotations

from typing import Any

from workflow_lib import plugins
from workflow_lib.comparison.subjects import outcomes_of
from workflow_lib.comparison.table import CONFIDENCE, RESAMPLES, SEED
from workflow_lib.config.measures import OWN_LOSS
from workflow_lib.config.registry import is_larger_better
from workflow_lib.files import read_json
from workflow_lib.metrics.bootstrap import Resampling
from workflow_lib.metrics.paired import differences
from workflow_lib.registry.versions import Version
from workflow_lib.results import layout
from workflow_lib.results.statements import read_evaluation
from workflow_lib.text import decimal

CONFIG = "config.json"  # settings of the run
BY_HAND = "the two cannot be compared; promote it by hand if it should get the alias"


def judge(candidate: Version, champion: Version | None, metric: str | None) -> dict[str, Any]:
    """Return the decision: if the candidate is promoted, the reason, and the figures that it is based on."""
    if champion is None:
        return {"promoted": True, "reason": "no version had the alias"}
    theirs, ours = champion.statement, candidate.statement
    if theirs["task"] != ours["task"]:
        return _refused(f"version {champion.number} is a {theirs['task']}, and this one a {ours['task']}; {BY_HAND}")
    if ours["test"] is None or theirs["test"] is None:
        return _refused(f"one of the two has no test split; {BY_HAND}")
    if theirs["test"] != ours["test"]:
        return _refused(
            f"version {champion.number} was measured on other test samples (digest {theirs['test'][:12]}, and here "
            f"{ours['test'][:12]}); {BY_HAND}"
        )
    return _measured(candidate, champion, metric)


def _refused(reason: str) -> dict[str, Any]:
    return {"promoted": False, "reason": reason}


def _measured(candidate: Version, champion: Version, metric: str | None) -> dict[str, Any]:
    facts = plugins.task_facts(candidate.statement["task"])
    name = metric or facts.curve[0]
    if name not in facts.metrics:
        return _added(candidate, champion, name)
    larger = facts.larger_is_better if name == facts.curve[0] else is_larger_better(name)
    both = [_outcomes(champion), _outcomes(candidate)]
    if both[0] is None or both[1] is None or not both[0].has_samples_of(both[1]):
        return _refused(f"the predictions for the test samples cannot be resampled together; {BY_HAND}")
    how = Resampling(RESAMPLES, CONFIDENCE, SEED)
    found = differences(both[0].scores(), both[1].scores(), len(both[0]), how).get(name)
    if found is None or found.low is None or found.high is None or found.value is None:
        return _refused(f"{name} has no interval for these predictions; {BY_HAND}")
    is_better = bool(found.is_more_than_noise) and (found.value > 0) == larger
    words = "better by more than noise" if is_better else "worse" if found.is_more_than_noise else "not more than noise"
    interval = f"[{decimal(found.low, 3)}, {decimal(found.high, 3)}]"
    return {
        "promoted": is_better,
        "reason": f"{name}: {decimal(found.value)} {interval} from version {champion.number}: {words}",
        "metric": name,
        "larger_is_better": larger,
        "values": {
            str(version.number): version.statement["metrics"].get(name, {}).get("value")
            for version in (champion, candidate)
        },
        "difference": {"value": found.value, "low": found.low, "high": found.high},
        "bootstrap": {**how.describe(), "kind": "paired", "samples": len(both[0])},
        "test": candidate.statement["test"],
    }


def _added(candidate: Version, champion: Version, name: str) -> dict[str, Any]:
    """Return the decision by a metric that the experiments of both versions add, from its two intervals."""
    theirs, ours = _definition(champion, name), _definition(candidate, name)
    if ours is None or theirs != ours:
        return _refused(f"version {champion.number} has no {name}, or one that is defined otherwise; {BY_HAND}")
    before, now = (_measure(each, name) for each in (champion, candidate))
    if None in (before["low"], before["high"], now["low"], now["high"]):
        return _refused(f"{name} has no interval for one of the two; {BY_HAND}")
    larger = bool(ours.get("maximize"))
    is_better = now["low"] > before["high"] if larger else now["high"] < before["low"]
    is_worse = now["high"] < before["low"] if larger else now["low"] > before["high"]
    words = "better by more than noise" if is_better else "worse" if is_worse else "not more than noise"
    shown = [
        f"{decimal(each['value'])} [{decimal(each['low'], 3)}, {decimal(each['high'], 3)}]" for each in (now, before)
    ]
    return {
        "promoted": is_better,
        "reason": f"{name}: {shown[0]}, and version {champion.number} {shown[1]}: {words}",
        "metric": name,
        "larger_is_better": larger,
        "values": {str(champion.number): before["value"], str(candidate.number): now["value"]},
        "test": candidate.statement["test"],
    }


def _measure(version: Version, name: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, **version.statement["metrics"].get(name, {})}


def _definition(version: Version, name: str) -> dict[str, Any] | None:
    """Return the settings of a metric that the experiment of a version adds; None if it does not."""
    training = read_json(version.verify(CONFIG))["training"]
    if name == OWN_LOSS and training.get("loss") is not None:
        return {"loss": training["loss"], "params": training.get("loss_params"), "maximize": False}
    return next((metric for metric in training.get("metrics", ()) if metric["label"] == name), None)


def _outcomes(version: Version) -> Any:
    """Return the predictions of a version, whose files are compared with their digests first."""
    if layout.PREDICTIONS not in version.statement["files"]:
        return None
    version.verify(layout.PREDICTIONS)
    return outcomes_of(version.folder, read_evaluation(version.verify(layout.EVALUATION)))
