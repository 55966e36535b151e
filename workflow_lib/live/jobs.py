"""The state of a pipeline, from the events of its Snakemake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES = {
    "preprocess": "data",
    "trial": "trials",
    "pack": "packs",
    "train": "trainings",
    "evaluate": "evaluations",
    "export": "exports",
    "report": "report",
    "track": "tracking",
}
TRAININGS = ("trial", "train")
RUNNING, FINISHED, FAILED = "running", "finished", "failed"


@dataclass
class Job:
    """A job of the pipeline; `subject` is its run, trial, data set or pack."""

    rule: str
    wildcards: Mapping[str, str]
    log: Path | None
    state: str = RUNNING
    attempts: int = 1

    @property
    def subject(self) -> str:
        """The run, trial, data set or pack that the job is about; empty if it is about the experiment."""
        values = self.wildcards
        if "number" in values:
            return f"trial {int(values['number'])}"
        return values.get("run") or values.get("data_id") or values.get("pack") or ""

    @property
    def name(self) -> str:
        """The rule and the subject: `train digits-9f8e7d6c5b4a`, `trial 3`."""
        subject = self.subject
        return subject if subject.startswith(self.rule) else f"{self.rule} {subject}".strip()

    def reference(self, results: Path) -> str | None:
        """Return what names the run that the job trains: its id, or the file that points to it; None without a run."""
        if "number" in self.wildcards:
            return str(results / "tune" / self.wildcards["study"] / f"suggest-{self.wildcards['number']}.json")
        return self.wildcards.get("run")


@dataclass
class Pipeline:
    """What is known of the pipeline so far."""

    results: Path | None = None  # of the experiment; None until it is read
    runs: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset()  # runs that have jobs to do
    is_local: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    has_started: bool = False
    has_nothing_to_do: bool = False
    errors: list[str] = field(default_factory=list)

    def apply(self, event: Mapping[str, Any]) -> Job | None:
        """Add an event; return the job that it is about, if there is one."""
        match event["kind"]:
            case "plan":
                self.results, self.runs = Path(event["results"]), tuple(event["runs"])
                self.is_local = event["is_local"]
            case "jobs":
                self.counts = event["counts"]
            case "started":
                self.has_started, self.needed = True, frozenset(event["runs"])
            case "nothing":
                self.has_nothing_to_do = True
            case "error":
                self.errors.append(event["text"])
            case "job":
                before = self.jobs.get(event["id"])
                log = Path(event["log"][0]) if event["log"] else None
                job = Job(event["rule"], event["wildcards"], log, attempts=before.attempts + 1 if before else 1)
                self.jobs[event["id"]] = job
                return job
            case "finished" | "failed":
                if known := self.jobs.get(event["id"]):
                    known.state = FINISHED if event["kind"] == "finished" else FAILED
                return known
        return None

    def trainings(self) -> Iterator[Job]:
        """Yield the trainings that run now."""
        return (job for job in self.jobs.values() if job.rule in TRAININGS and job.state == RUNNING)

    def done(self, rule: str) -> int:
        """Return the number of finished jobs of a rule."""
        return sum(job.state == FINISHED for job in self.jobs.values() if job.rule == rule)

    @property
    def done_jobs(self) -> int:
        """The number of finished jobs."""
        return sum(job.state == FINISHED for job in self.jobs.values())

    def phases(self) -> dict[str, tuple[int, int]]:
        """Return the finished and all jobs of each phase that has jobs, in order."""
        return {name: (self.done(rule), self.counts[rule]) for rule, name in PHASES.items() if self.counts.get(rule)}

    def state_of(self, run: str) -> str:
        """Return the state of a run: what its newest job does, `waiting`, `finished` or `failed`; empty at first."""
        own = [job for job in self.jobs.values() if job.wildcards.get("run") == run]
        if not own:
            return "waiting" if run in self.needed else "finished" if self.has_started else ""
        if any(job.state == FAILED for job in own):
            return FAILED
        running = [job.rule for job in own if job.state == RUNNING]
        if running:
            return {"train": "training", "evaluate": "evaluating", "export": "exporting"}.get(running[-1], running[-1])
        return FINISHED if any(job.rule == "export" for job in own) else "trained"
