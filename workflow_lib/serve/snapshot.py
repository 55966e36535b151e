"""The content of the page: the rows of `everstep status`, with the phases, curves, warnings and results of the runs."""

from __future__ import annotations

import shlex
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from workflow_lib import plugins
from workflow_lib.errors import ConfigError
from workflow_lib.files import UNREADABLE, read_json
from workflow_lib.housekeeping import failed_jobs, status
from workflow_lib.housekeeping.status_table import FAILED
from workflow_lib.live.jobs import PHASES
from workflow_lib.report.curves import MAX_CURVES
from workflow_lib.results import layout as results_layout
from workflow_lib.results.read_runs import TUNED
from workflow_lib.results.statements import DIVERGED
from workflow_lib.serve.followed import Followed, Stamp, stamp_of
from workflow_lib.text import decimal, duration

Row = dict[str, Any]

FRESH_S = 1.0  # within which all browsers get the same content
SHARE = 0.1  # of a CPU that the content takes at most, however many runs there are
PATIENCE_S = 2.0  # after which a browser gets the content as it was, if the disk or the CPUs are too busy for a new one
STATEMENTS = {"train": results_layout.TRAIN, "evaluate": results_layout.EVALUATION, "export": results_layout.EXPORT}
MOST_ROWS = 400  # that the page shows
ACTIVE = ("running", "waiting", "evaluating", "exporting")


@dataclass(frozen=True)
class Named:
    """A run by its name in an experiment; `folder` is that of its results, and `log` that of its training."""

    experiment: str
    name: str
    folder: Path
    log: Path


@dataclass(frozen=True)
class Content:
    """The content of the page at a time: its state, and by key the version and the columns of each curve."""

    state: Row
    curves: dict[str, tuple[int, Row]]


class Files:
    """Values of JSON files, which are read again when they have changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, Any]] = {}

    def read(self, path: Path) -> Any:
        """Return the value of the file; None if it does not exist, or cannot be read now."""
        stamp = stamp_of(path)
        if stamp is None:
            self._known.pop(path, None)
            return None
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                known = self._known[path] = stamp, read_json(path)
            except UNREADABLE:
                return None
        return known[1]


class Snapshots:
    """The content of the page, computed at most once a second, by one thread, and for all browsers together.

    `experiment` is the name or the file of an experiment; None stands for all runs.
    """

    def __init__(self, experiment: str | None, work: Path, results: Path) -> None:
        self._experiment, self._work, self._results = experiment, work, results
        self._lock = threading.Lock()  # of the last three; the others belong to the thread that computes
        self._files = Files()
        self._followed: dict[str, Followed] = {}  # by the keys of the rows
        self._drawn: dict[str, Row] = {}
        self._names: dict[str, list[Named]] = {}
        self._version = 0
        self._running: Future[Content] | None = None
        self._content: Content | None = None
        self._valid_until = 0.0

    def check(self) -> None:
        """Raise ConfigError if the experiment is not planned."""
        if self._experiment is not None:
            status.chosen([], self._results, self._experiment, [])

    def state(self) -> Row:
        """Return what the page shows, without the curves."""
        return self._newest().state

    def curves(self, since: int) -> Row:
        """Return the curves that have changed since a version, and the keys of all curves."""
        content = self._newest()
        changed = [curve for version, curve in content.curves.values() if version > since]
        return {"version": content.state["curves"], "keys": [*content.curves], "changed": changed}

    def _newest(self) -> Content:
        """Return the content, at most a second old; an older one if a new one takes longer than PATIENCE_S."""
        with self._lock:
            known, running = self._content, self._running
            if running is None and known is not None and time.monotonic() < self._valid_until:
                return known
            if running is None:
                running = Future()
                threading.Thread(target=self._refresh, args=(running,), daemon=True).start()
                self._running = running
        if known is not None and not wait([running], PATIENCE_S).done:
            return known
        return running.result()

    def _refresh(self, running: Future[Content]) -> None:
        """Compute the content for all who wait for it."""
        used_s = time.thread_time()
        try:
            content = self._compute()
        except Exception as error:  # those who wait raise it
            with self._lock:
                self._running = None
            running.set_exception(error)
            return
        used_s = time.thread_time() - used_s
        with self._lock:
            self._content, self._running = content, None
            # from its end: those who waited for it need no other one
            self._valid_until = time.monotonic() + max(FRESH_S, used_s / SHARE)
        running.set_result(content)

    def _compute(self) -> Content:
        rows, problem = self._rows()
        named = self._names = self._named()
        self._follow(rows)
        counts = Counter(row["state"] for row in rows)
        shown = sorted(rows, key=lambda row: row["state"] not in ACTIVE)[:MOST_ROWS]  # stable: latest activity first
        experiments = {found.experiment for row in rows for found in named.get(row["digest"], ())}
        state = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "title": Path(self._experiment).stem if self._experiment else Path.cwd().name,
            "place": f"{socket.gethostname()}:{Path.cwd()}",
            "problem": problem,
            "counts": {
                state: counts[state] for state in sorted(counts, key=lambda state: (state not in FAILED, state))
            },
            "more": len(rows) - len(shown),
            "experiments": [self._phases(name) for name in sorted(experiments)],
            "runs": [self._shown(row, named.get(row["digest"], [])) for row in shown],
            "warnings": sorted(
                (
                    [time, row["run"], text]
                    for key, row in self._drawn.items()
                    for time, text in self._followed[key].warnings
                ),
                reverse=True,
            )[:50],
            "curves": self._version,
            "drawn": f"{len(self._drawn)} of {sum(row['workspace'] is not None for row in rows)} runs"
            if len(self._drawn) == MAX_CURVES
            else "",
        }
        return Content(state, {key: self._curve(key, row) for key, row in self._drawn.items()})

    def _curve(self, key: str, row: Row) -> tuple[int, Row]:
        """Return the version and the columns of a curve, which are those of the last content if it is the same."""
        version = self._followed[key].version
        known = self._content.curves.get(key) if self._content else None
        if known is not None and known[0] == version:
            return known
        return version, self._followed[key].curve(row["run"]) | {"key": key}

    def _rows(self) -> tuple[list[Row], str]:
        """Return the rows of the status, and what hinders to read them."""
        try:
            return status.chosen(status.runs(self._work, self._results), self._results, self._experiment, []), ""
        except (ConfigError, OSError) as error:  # the plan was removed since, or is replaced just now
            return [], str(error)

    def _named(self) -> dict[str, list[Named]]:
        """Return the names of each run in the experiments, by its digest."""
        found: dict[str, list[Named]] = {}
        logs = self._results.parent / failed_jobs.LOGS
        for path in results_layout.all_plans(self._results):
            plan, folder = self._files.read(path), path.parent
            if not isinstance(plan, dict):
                continue
            for run in [*plan.get("runs", []), *plan.get("trained_first", [])]:
                log = logs / "train" / folder.name / f"{run['id']}.log"
                found.setdefault(run["digest"], []).append(
                    Named(folder.name, run["id"], results_layout.run_dir(folder, run["id"]), log)
                )
            if plan.get("study"):
                self._add_trials(found, folder, results_layout.study_dir(folder, plan["study"]["id"]))
        return found

    def _add_trials(self, names: dict[str, list[Named]], folder: Path, study: Path) -> None:
        """Add the names of the trials of a study, and of the run that is trained with the best settings."""
        logs = self._results.parent / failed_jobs.LOGS
        for path in results_layout.pointers(study):
            if not isinstance(pointed := self._files.read(path), dict):
                continue
            run, is_best = pointed["run"], path.name == results_layout.BEST
            name = TUNED if is_best else str(run["id"])
            number = path.stem.removeprefix("suggest-")
            log = logs / ("train" if is_best else "trial") / folder.name
            log = log / f"{TUNED}.log" if is_best else log / study.name / f"{number}.log"
            names.setdefault(run["digest"], []).append(
                Named(folder.name, name, results_layout.run_dir(folder, name), log)
            )

    def _follow(self, rows: Iterable[Row]) -> None:
        """Read what is new in the workspaces whose curves are drawn: of the runs that are active, then the latest."""
        begun = [row for row in rows if row["workspace"] is not None and row["state"] != "new"]
        chosen = sorted(begun, key=lambda row: row["state"] not in ACTIVE)[:MAX_CURVES]
        before = [*self._drawn]
        self._drawn = {key_of(row): row for row in chosen}
        self._version += 1
        for key in self._followed.keys() - self._drawn.keys():
            del self._followed[key]
        for key, row in self._drawn.items():
            if key not in self._followed:
                self._followed[key] = Followed(Path(row["workspace"]))
            self._followed[key].update(self._version, self._best(row))
        if [*self._drawn] == before and all(found.version < self._version for found in self._followed.values()):
            self._version -= 1  # nothing has changed

    def _best(self, row: Row) -> Any:
        """Return the epoch whose weights are kept; None until the training is finished."""
        for found in self._names.get(row["digest"], []):
            training = self._files.read(found.folder / results_layout.TRAIN)
            if isinstance(training, dict) and isinstance(training.get("best"), dict):
                return training["best"]["epoch"]
        return None

    def _shown(self, row: Row, named: Sequence[Named]) -> Row:
        """Return a row of the page, whose numbers are text."""
        is_by_epoch = bool(row["epochs"])
        metric = row["select_metric"]
        value = row["metrics"].get(metric)
        return {
            "key": key_of(row),
            "run": row["run"],
            "state": row["state"],
            "is_failure": row["state"] in FAILED,
            "why": row["why"] or "",
            "place": (f"{row['epoch']}/{row['epochs']}" if is_by_epoch else f"{row['step']:,}/{row['steps']:,}")
            if row["steps"]
            else "",
            "unit": "epoch" if is_by_epoch else "step",
            "share": row["step"] / row["steps"] if row["steps"] else None,
            "loss": _number(row["loss"]),
            "metric": metric if value is not None else "",
            "value": _number(value),
            "speed": f"{row['samples_per_s']:,.0f}" if row["samples_per_s"] else "",
            "left": duration(row["left_s"]) if row["left_s"] is not None else "",
            "saved": duration(row["checkpoint_age_s"]) if row["checkpoint_age_s"] is not None else "",
            "attempts": len(row["attempts"]),
            "tests": next(filter(None, map(self._tests, named)), []),
            "links": [*self._links(named)],
        }

    def _tests(self, named: Named) -> list[list[str]]:
        """Return label, value and interval of each metric of the evaluation."""
        evaluation = self._files.read(named.folder / results_layout.EVALUATION)
        if not isinstance(evaluation, dict) or not isinstance(evaluation.get("metrics"), dict):
            return []
        return [
            [
                labels().get(name, name.removeprefix("val_").replace("_", " ")),
                decimal(metric["value"]) if metric.get("value") is not None else "undefined",
                f"{decimal(metric['low'])} – {decimal(metric['high'])}" if metric.get("low") is not None else "",
            ]
            for name, metric in evaluation["metrics"].items()
        ]

    def _links(self, named: Sequence[Named]) -> Iterable[list[str]]:
        for found in named:
            of = f" ({found.experiment})" if len(named) > 1 else ""
            if address := self._address(found.log):
                yield [f"log{of}", address]
            for name, label in ((results_layout.HISTORY, "curve"), (results_layout.EVALUATION, "evaluation")):
                if address := self._address(found.folder / name):
                    yield [f"{label}{of}", address]

    def _address(self, path: Path) -> str | None:
        """Return the address of a file, relative to the page; None if it does not exist.

        The server decides whether it may be read, when it is asked for (access.find_file).
        """
        return f"files/{path.as_posix()}" if path.is_file() else None

    def _has_diverged(self, folder: Path) -> bool:
        training = self._files.read(folder / results_layout.TRAIN)
        return isinstance(training, dict) and training.get("state") == DIVERGED

    def _study_command(self, folder: Path) -> str:
        """Return the command that copies the study of an experiment for optuna-dashboard; "" if its file is unknown."""
        owner = self._files.read(results_layout.owner_file(folder))
        if not isinstance(owner, dict) or len(owner.get("files", ())) != 1:
            return ""
        settings = ["--set", " ".join(owner["set"])] if owner.get("set") else []
        return shlex.join(["everstep", "study", owner["files"][0], *settings, "--to", "sqlite:///study.db"])

    def _phases(self, name: str) -> Row:
        """Return the phases of an experiment, each with the number of finished and of all jobs, and what has failed.

        A diverged training is not finished, and leaves nothing to evaluate or to export.
        """
        folder = self._results / name
        plan = self._files.read(results_layout.plan_file(folder)) or {"runs": [], "study": None}
        study: Mapping[str, Any] | None = plan["study"]
        runs = [*(run["id"] for run in (*plan["runs"], *plan.get("trained_first", []))), *([TUNED] if study else [])]
        diverged = {run for run in runs if self._has_diverged(results_layout.run_dir(folder, run))}
        data = {run["data_id"] for run in plan["runs"]} | ({study["data_id"]} if study else set())
        files = {
            "preprocess": [results_layout.data_manifest(folder, name) for name in data],
            "trial": [
                results_layout.trial_file(results_layout.study_dir(folder, study["id"]), number)
                for number in range(study["trials"])
            ]
            if study
            else [],
            **{
                rule: [results_layout.run_dir(folder, run) / name for run in runs if run not in diverged]
                for rule, name in STATEMENTS.items()
            },
            "report": [folder / results_layout.REPORT],
        }
        pages = (
            (results_layout.REPORT, "report"),
            (results_layout.RUNS_TABLE, "table of runs"),
            (results_layout.REGISTRY_PAGE, "registry"),
        )
        return {
            "name": name,
            "phases": [
                [
                    PHASES[rule],
                    sum(path.exists() for path in paths),
                    len(paths) + len(diverged) * (rule == "train"),
                    len(diverged) * (rule == "train"),
                ]
                for rule, paths in files.items()
                if paths or (rule == "train" and diverged)
            ],
            "failures": [[job.text, self._address(job.log)] for job in failed_jobs.of_experiment(folder)],
            "links": [[label, address] for file, label in pages if (address := self._address(folder / file))],
            "study": self._study_command(folder) if study else "",
        }


def key_of(row: Row) -> str:
    """Return what names a row of the status, also over time."""
    workspace = row["workspace"]
    return f"{row['digest']}-{Path(workspace).name}" if workspace else str(row["digest"])


def _number(value: float | None) -> str:
    return "" if value is None else decimal(value)


@cache
def labels() -> dict[str, str]:
    """Return the labels of the metrics of all tasks."""
    return {name: label for facts in plugins.all_facts().values() for name, label in facts.metrics.items()}
