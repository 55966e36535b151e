"""The rule `register`: the best model of an experiment becomes a version, and gets the alias if the gate passes."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, plan, report, tracking
from workflow_lib.errors import StateError, UserError
from workflow_lib.files import file_digest, write_json
from workflow_lib.processes import user
from workflow_lib.registry import aliases, gate, versions
from workflow_lib.registry.card import card
from workflow_lib.registry.gate import CONFIG
from workflow_lib.registry.page import write_page
from workflow_lib.registry.versions import Version
from workflow_lib.report.selection import selection
from workflow_lib.results import layout, provenance
from workflow_lib.results import write_run as outputs
from workflow_lib.results.statements import read_evaluation, read_export
from workflow_lib.store import layout as store_layout
from workflow_lib.store.attempts import utc_now

if TYPE_CHECKING:
    from workflow_lib.config import Experiment
    from workflow_lib.config.registry import Registry

FILES = (layout.MODEL, layout.ONNX, layout.TRAIN, layout.EVALUATION, layout.EXPORT, layout.PREDICTIONS)

logger = logging.getLogger(__name__)


def register(experiment: Experiment, results: Path, work: Path, output: Path) -> None:
    """Publish the best run as a version, decide on its promotion, and write both to `output`.

    Raises UserError if the experiment has no section `registry` or no run with a result.
    """
    settings = experiment.registry
    if settings is None:
        raise UserError(f"{experiment.name} has no section `registry`: add one with the `name` of the model")
    if settings.mlflow:
        tracking.check_installed(["mlflow"], "registry.mlflow")
    version, is_new = _published(experiment, settings, results, work)
    logger.info("%s: %s version %d", version.folder, "published as" if is_new else "is already", version.number)
    decision = _promoted(settings, version, experiment.name)
    verdict = "is now" if decision["promoted"] else "is not promoted to"
    logger.info("version %d %s %s: %s", version.number, verdict, settings.alias, decision["reason"])
    copied = {}
    if settings.mlflow:
        from workflow_lib.registry import mlflow_copy

        champion = aliases.holder(
            settings.folder, settings.name, aliases.decisions(settings.folder, settings.name, settings.alias)
        )
        copied = {"mlflow": mlflow_copy.copy(settings, version, champion, experiment.tracking.folder)}
    write_page(settings, experiment.name, version.number, decision, output.with_name(layout.REGISTRY_PAGE))
    write_json(
        output,
        {
            "name": settings.name,
            "version": version.number,
            "digest": version.digest,
            "folder": str(version.folder),
            "is_new": is_new,
            "alias": settings.alias,
            "decision": decision,
            **copied,
            "provenance": provenance.made_by([results / layout.RUNS_TABLE]),
        },
    )


def _published(experiment: Experiment, settings: Registry, results: Path, work: Path) -> tuple[Version, bool]:
    """Publish the best run. Raises StateError if its files are not those that its statements describe."""
    from workflow_lib.data import Manifest

    best, _ = report.result(results)
    folder = layout.run_dir(results, best["name"])
    train = outputs.trained(folder / layout.MODEL, work)
    evaluation, export = read_evaluation(folder / layout.EVALUATION), read_export(folder / layout.EXPORT)
    run, digest = plan.load_run(train["digest"], work)
    manifest = Manifest.load(layout.data_manifest(results, plan.data_id(run)))
    weights, graph = file_digest(folder / layout.MODEL), file_digest(folder / layout.ONNX)
    described = {evaluation["model"], export["model"]}, export["onnx"]["digest"], train["data"]
    if described != ({weights}, graph, manifest.digest):
        raise StateError(f"{folder}: its files are not those that its statements describe. Run the pipeline again")
    test = manifest.splits["test"].digest if evaluation["split"] == "test" else None
    statement = {
        "task": evaluation["task"],
        "test": test,
        "run": train["run"],
        "run_name": best["name"],
        "run_digest": digest,
        "data": train["data"],
        "code": train["code"],
        "metrics": evaluation["metrics"],
        "samples": evaluation["samples"],
        "experiment": experiment.name,
        "registered": utc_now(),
        "by": _me(),
        "provenance": provenance.made_by([]),
    }
    given = {name: folder / name for name in FILES if (folder / name).exists()}

    def describe(number: int) -> tuple[dict[str, Any], str]:
        title = f"{settings.name}, version {number}"
        chosen = selection(experiment, results, best)
        text = card(title, folder, run, manifest, train=train, evaluation=evaluation, export=export, selection=chosen)
        return {**statement, "version": number}, text

    return versions.publish(
        settings.folder,
        settings.name,
        digest=config.digest({"model": weights, "onnx": graph, "test": test}, "version"),
        files=given | {CONFIG: store_layout.run_config(work, digest)},
        describe=describe,
    )


def _promoted(settings: Registry, version: Version, experiment: str) -> aliases.Decision:
    """Return the decision about the version, which is recorded unless the same was decided before."""

    def choose(history: list[aliases.Decision], champion: Version | None) -> tuple[aliases.Decision, bool]:
        if champion is not None and champion.digest == version.digest:
            own = [made for made in history if made["version"] == _reference(version) and made["promoted"]]
            return own[-1], False
        judged = gate.judge(version, champion, settings.metric)
        made = _decision(version, champion, judged, {"experiment": experiment})
        known = next((earlier for earlier in history if {**earlier, **_when(made)} == made), None)
        return known or made, known is None

    return aliases.decide(settings.folder, settings.name, settings.alias, choose)


def promote(registry: Path, name: str, number: int, alias: str, reason: str) -> str:
    """Give the alias to a version by hand, and return a line that says so. Raises UserError without a reason."""
    if not reason.strip():
        raise UserError("--reason: say why; the reason is recorded with the decision")
    if name not in versions.names(registry):
        raise UserError(f"{registry} has no model {name}; allowed: {', '.join(versions.names(registry)) or 'none yet'}")
    version = versions.load(registry, name, number)

    had_it = False

    def choose(history: list[aliases.Decision], champion: Version | None) -> tuple[aliases.Decision, bool]:
        nonlocal had_it
        had_it = champion is not None and champion.digest == version.digest
        return _decision(version, champion, {"promoted": True, "reason": reason}, {"by_hand": True}), not had_it

    aliases.decide(registry, name, alias, choose)
    return f"{name}: version {number} is {f'already {alias}; nothing was recorded' if had_it else f'now {alias}'}"


def _decision(
    version: Version, champion: Version | None, judged: dict[str, Any], more: dict[str, Any]
) -> aliases.Decision:
    held = version if judged["promoted"] else champion
    return {
        **judged,
        **more,
        "version": _reference(version),
        "before": _reference(champion),
        "holder": _reference(held),
        "time": utc_now(),
        "by": _me(),
    }


def _when(decision: aliases.Decision) -> aliases.Decision:
    """Return what differs between a decision and the same one made again."""
    return {name: decision[name] for name in ("time", "by")}


def _reference(version: Version | None) -> dict[str, Any] | None:
    return None if version is None else {"number": version.number, "digest": version.digest}


def _me() -> str:
    return f"{user()}@{socket.gethostname()}"
