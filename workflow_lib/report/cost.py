"""The chapter on cost: attempts, and time that was used, lost and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.files import read_json
from workflow_lib.report.runs_table import PAGE
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import RunResults, Unfinished
from workflow_lib.store import accounting
from workflow_lib.store.accounting import Account
from workflow_lib.text import count

if TYPE_CHECKING:
    from workflow_lib.config import Experiment

Line = tuple[str, Account]


def cost(
    experiment: Experiment, results: Path, runs: Sequence[RunResults], diverged: Sequence[Unfinished], work: Path
) -> list[Line]:
    """Return the cost of each run, of the study's other trials together, and the sum.

    Runs with the same digest are counted once. If there are more than PAGE runs, the most expensive are listed, then
    the others together.
    """
    # `runs` are sorted best first: reversed, a digest gets the name of its best run
    by_digest = {run.train["digest"]: (run.name, run.account) for run in reversed(runs)}
    lines = [*list(by_digest.values())[::-1], *((run.name, run.account) for run in diverged)]
    trials = _trials(experiment, results, by_digest, work)
    everything = ("all", accounting.total(account for _, account in [*lines, *trials]))
    return [*_shortened(lines), *trials, everything]


def _trials(experiment: Experiment, results: Path, known: dict[str, Line], work: Path) -> list[Line]:
    """Return one line for the trials of the study that are not among the known runs; empty without a study."""
    from workflow_lib import plan
    from workflow_lib.store import layout

    data = results_layout.data_manifest(
        results, plan.data_id(plan.tuned_base(experiment) if experiment.tune else experiment)
    )
    if experiment.tune is None or not data.exists():
        return []
    folder = results_layout.study_dir(results, plan.study_id(experiment))
    digests = {read_json(path)["run"]["digest"] for path in results_layout.suggestion_files(folder)} - known.keys()
    manifest = read_json(data)["digest"]
    workspaces = [path for digest in digests for path in layout.workspaces(work, digest, manifest)]
    return [(count(len(digests), "trial"), accounting.total(map(accounting.account, workspaces)))]


def _shortened(lines: Sequence[Line]) -> list[Line]:
    if len(lines) <= PAGE:
        return list(lines)
    most = sorted(lines, key=lambda line: line[1].used_s, reverse=True)
    others = accounting.total(account for _, account in most[PAGE:])
    return [*most[:PAGE], (count(len(lines) - PAGE, "other run"), others)]
