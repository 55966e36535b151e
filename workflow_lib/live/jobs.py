"""The state of a pipeline, from the events of its Snakemake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_lib import ready
from workflow_lib.errors import TryAgain, UserError
from workflow_lib.results import layout
from workflow_lib.results.read_runs import TUNED

PHASES = {
    "preprocess": "data",
    "trial": "trials",
    "pack": "packs",
    "train": "trainings",
    "evaluate": "evaluations",
    "export": "exports",
    "report": "report",
    "track": "tracking",
    "register": "registration",
}
TRAININGS = ("trial", "train")
RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"
SHELL_SIGNAL = 128  # a shell adds it to the number of the signal that ended its command


@dataclass
class Job:
    """A job of the pipeline; `subject` is its run, trial, data set or pack.

    If it did not finish, `reason` is the last line of its log, and `code` is its exit code (negative for a signal), or
    None if that is not known. `before` is the attempt before a retry. `file` names the run of a job in a pack if the
    results do not yet.
    """

    rule: str
    wildcards: Mapping[str, str]
    state: str = RUNNING
    code: int | None = None
    reason: str = ""
    before: Job | None = None
    file: Path | None = None

    def fail(self, code: int | None, reason: str, *, is_stopping: bool) -> None:
        """Record that the job did not finish; one that saved, or that the pipeline interrupted, has not failed."""
        self.code, self.reason = code, reason.removeprefix(f"everstep {self.rule}: ")
        was_interrupted = code is not None and (code < 0 or code > SHELL_SIGNAL or code == TryAgain.exit_code)
        was_interrupted |= self.reason == KeyboardInterrupt.__name__  # Python itself started: its exit code is 1
        self.state = STOPPED if self.reason.startswith("stopped") or (is_stopping and was_interrupted) else FAILED

    @property
    def is_rejected(self) -> bool:
        """True if the job failed by a mistake of the user, so that a retry fails in the same way."""
        return self.state == FAILED and self.code == UserError.exit_code

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
        if self.file is not None:
            return str(self.file)
        if "number" in self.wildcards:
            return str(results / "tune" / self.wildcards["study"] / f"suggest-{self.wildcards['number']}.json")
        return self.wildcards.get("run")


@dataclass
class Pipeline:
    """State of the pipeline and its runs, from the events that have come so far."""

    results: Path | None = None  # of the experiment; None until it is read
    experiment: Path | None = None  # as it is frozen
    runs: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset()  # runs that have jobs to do
    packs: dict[str, list[str]] = field(default_factory=dict)  # the runs of each pack
    prepared: Path | None = None  # folder of the packs' results
    trained: set[tuple[str, str]] = field(default_factory=set)  # rule and subject of trainings that ended, also packed
    is_local: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    has_started: bool = False
    has_nothing_to_do: bool = False
    is_stopping: bool = False
    has_told: bool = False  # people have got a message about failed jobs
    errors: list[str] = field(default_factory=list)

    def apply(self, event: Mapping[str, Any]) -> Job | None:
        """Add an event; return the job that it is about, if there is one."""
        match event["kind"]:
            case "plan":
                self.results, self.runs = Path(event["results"]), tuple(event["runs"])
                self.is_local, self.experiment = event["is_local"], Path(event["experiment"])
            case "jobs":
                self.counts = event["counts"]
            case "started":
                self.has_started, self.needed = True, frozenset(event["runs"])
                self.packs, self.prepared = event["packs"], Path(event["prepared"])
            case "nothing":
                self.has_nothing_to_do = True
            case "told":
                self.has_told = True
            case "error":
                self.errors.append(event["text"])
            case "job":
                job = Job(event["rule"], event["wildcards"], before=self.jobs.get(event["id"]))
                self.jobs[event["id"]] = job
                return job
            case "finished":
                if finished := self.jobs.get(event["id"]):
                    finished.state = FINISHED
                return finished
            case "failed":
                if failed := self.jobs.get(event["id"]):
                    failed.fail(event["code"], event["reason"], is_stopping=self.is_stopping)
                return failed
        return None

    def trainings(self) -> Iterator[Job]:
        """Yield the trainings that run now, and those of the packs that run, as if each had its own job."""
        for job in [job for job in self.jobs.values() if job.state == RUNNING]:
            if job.rule in TRAININGS:
                yield job
            elif job.rule == "pack":
                yield from (Job("train", {"run": run}) for run in self.packs.get(job.subject, ()))
                yield from self._of_study(job.subject)

    def _of_study(self, pack: str) -> Iterator[Job]:
        """Yield the trials of a pack that run, and the training with the best settings; note the trials that ended."""
        if self.prepared is None:
            return
        study = self.prepared / pack / ready.STUDY
        for path in layout.suggestion_files(study):
            number = path.stem.rpartition("-")[2]
            job = Job("trial", {"number": number}, file=path)
            if layout.trial_file(study, int(number)).exists():
                self.trained.add((job.rule, job.subject))
            else:
                yield job
        if layout.best_file(study).exists():
            yield Job("train", {"run": TUNED}, file=layout.best_file(study))

    def done(self, rule: str) -> int:
        """Return the number of jobs of a rule that are finished, or whose training in a pack is."""
        jobs = {(rule, job.subject) for job in self.jobs.values() if job.rule == rule and job.state == FINISHED}
        return len(jobs | {trained for trained in self.trained if trained[0] == rule})

    @property
    def done_jobs(self) -> int:
        """The number of finished jobs."""
        return sum(job.state == FINISHED for job in self.jobs.values())

    @property
    def is_rejected(self) -> bool:
        """True if jobs have failed, and all of them by a mistake of the user."""
        failed = [job for job in self.jobs.values() if job.state == FAILED]
        return bool(failed) and all(job.is_rejected for job in failed)

    def phases(self) -> dict[str, tuple[int, int]]:
        """Return the finished and all jobs of each phase that has jobs, in order."""
        return {name: (self.done(rule), self.counts[rule]) for rule, name in PHASES.items() if self.counts.get(rule)}

    def state_of(self, run: str) -> str:
        """Return the state of a run: what its newest job does, or how it ended, or `waiting`; empty at first."""
        own = [job for job in self.jobs.values() if job.wildcards.get("run") == run]
        if not own:
            if ("train", run) in self.trained:
                return "trained"
            return "waiting" if run in self.needed else "finished" if self.has_started else ""
        for state in (FAILED, STOPPED):
            if any(job.state == state for job in own):
                return state
        running = [job.rule for job in own if job.state == RUNNING]
        if running:
            return {"train": "training", "evaluate": "evaluating", "export": "exporting"}.get(running[-1], running[-1])
        return FINISHED if any(job.rule == "export" for job in own) else "trained"
