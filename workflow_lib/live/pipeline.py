"""The pipeline as a child process: it is started, watched, stopped and judged here.

Snakemake runs in its own process group, so that a Ctrl-C reaches it and its jobs only from here: the first asks them to
save and stop, the second kills them. What Snakemake prints goes to a file; its events come through another.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

from workflow_lib import shipped, snakefile
from workflow_lib.errors import EverstepError, Stopped, UserError
from workflow_lib.live import detached, recorder, submission, telling
from workflow_lib.live.jobs import Pipeline
from workflow_lib.live.submission import SNAKEFILES
from workflow_lib.live.watch import Watch
from workflow_lib.slurm import queue
from workflow_lib.store.events import Follower

LOGS = Path("logs") / "run"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 0.2
SAVES_S = 45.0  # SLURM kills a cancelled job after KillWait, usually 30 s
LEAST_FREE = 1 << 16  # bytes; with fewer, a disk is full
OWN_LOG = re.compile(r"\d{4}-\d\d-\d\dT\d{6}-\d+\.log")
KEPT_LOGS, KEPT_LOGS_S = 20, 10 * 86400.0  # the newest ones are kept, and those of the last ten days


class Signals:
    """The signals that this process got since the block began."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.is_suspended = False  # by Ctrl-Z; the process has not stopped yet

    def add(self, number: int, frame: FrameType | None) -> None:
        """Count the signal, but only the first SIGHUP: a terminal that closes sends several."""
        if number == signal.SIGTSTP:
            self.is_suspended = True
        elif number != signal.SIGHUP or not self.got:
            self.got.append(number)

    def stop_process(self) -> None:
        """Stop this process, as Ctrl-Z does, until `fg` or `bg`."""
        self.is_suspended = False
        os.kill(os.getpid(), signal.SIGSTOP)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Count the signals that ask to stop, instead of ending. Only the main thread of a program can.

        A signal that is ignored stays so: SIGHUP under `nohup`, Ctrl-C for a process in the background of a script. But
        Snakemake and its jobs, which inherit what is ignored, must hear the SIGINT that asks them to save.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [n for n in (*STOP_SIGNALS, signal.SIGTSTP) if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self.add) for number in heard}
        if signal.SIGINT not in before:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)  # a child inherits the default then
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(command: Sequence[str], typed: Sequence[str], given: Path | None = None) -> None:
    """Run the command of Snakemake to its end and show what it does; `typed` is what the user types to repeat it.

    `given` is the file of the experiment. Raises Stopped if it was asked to stop, UserError for a mistake of the user,
    and EverstepError if a job failed.
    """
    pipeline, repeated = Pipeline(), detached.typed() or shlex.join(typed)
    try:
        _run(command, repeated, pipeline)
    except Stopped:
        raise
    except EverstepError as error:
        is_watched = not detached.is_here()
        telling.tell_failure(str(error), pipeline, given, is_watched=is_watched, resume=repeated)
        raise


def _run(command: Sequence[str], repeated: str, pipeline: Pipeline) -> None:
    signals = Signals()
    LOGS.mkdir(parents=True, exist_ok=True)
    remove_old_logs(LOGS)
    log = LOGS / f"{datetime.now():%Y-%m-%dT%H%M%S}-{os.getpid()}.log"
    with tempfile.TemporaryDirectory(prefix="everstep-") as folder, log.open("wb") as output, signals.caught():
        events = Path(folder) / "events.jsonl"
        environment = {recorder.PATH: str(events), recorder.COMMAND: repeated}
        child = subprocess.Popen(
            command,
            env=detached.environment() | cache_without_home() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        with Watch(Follower(events), log, pipeline) as watch:
            was_stopped = _wait(child, watch, signals)
    _judge(child.returncode, watch, log, was_stopped=was_stopped)


def cache_without_home(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variable that moves Snakemake's cache into the project if the home folder cannot have one."""
    place = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache")
    try:
        place.mkdir(parents=True, exist_ok=True)
        is_usable = os.access(place, os.W_OK)
    except OSError:
        is_usable = False
    return {} if is_usable else {"XDG_CACHE_HOME": str(Path(".snakemake", "cache").absolute())}


def remove_old_logs(folder: Path) -> None:
    """Remove logs of earlier pipelines, but not the newest ones."""
    logs = [path for path in folder.iterdir() if OWN_LOG.fullmatch(path.name)]
    for path in sorted(logs, key=lambda path: path.name)[:-KEPT_LOGS]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_LOGS_S:
                path.unlink()


def _wait(child: subprocess.Popen[bytes], watch: Watch, signals: Signals) -> bool:
    """Show the pipeline until it ends; return True if it was asked to stop.

    Raises Stopped, or EverstepError if it does not return to the queue, if the job that it runs in ends before.
    """
    asked, ends_at = 0, detached.ends_at()
    while True:
        is_over = child.poll() is not None
        watch.update()
        if is_over:
            if asked:
                _wait_for_saves(watch, signals, asked)
            return asked > 0
        if signals.is_suspended:
            watch.say_suspended()
            signals.stop_process()
            watch.resume()
        if len(signals.got) > asked:
            why = detached.interruption() if signals.got[0] == signal.SIGTERM and not asked else None
            if why is not None:
                _leave(child)
                detached.requeue(why)
            asked += 1
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT if asked == 1 else signal.SIGKILL)
            if asked > 1:
                child.wait()
                raise KeyboardInterrupt
            watch.say_stopping()
        elif ends_at is not None and time.monotonic() >= ends_at and not asked:
            _leave(child)
            detached.requeue()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=LOOK_S)


def _leave(child: subprocess.Popen[bytes]) -> None:
    """End Snakemake so that the jobs which it has submitted stay in the queue."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _wait_for_saves(watch: Watch, signals: Signals, asked: int) -> None:
    """Wait until the trainings on a cluster have saved, or the user asks again; Snakemake has cancelled their jobs."""
    end = time.monotonic() + SAVES_S
    while not watch.has_saved():
        if time.monotonic() >= end or len(signals.got) > asked:
            watch.say_unsaved()
            return
        time.sleep(LOOK_S)


def _judge(code: int, watch: Watch, log: Path, *, was_stopped: bool) -> None:
    """Print what there is now; raise the error that the exit code stands for."""
    pipeline = watch.pipeline
    if code == 0 and not (pipeline.has_started or pipeline.has_nothing_to_do):
        print(log.read_text(encoding="utf-8", errors="replace"), end="")  # a dry run, or another task of Snakemake
        return
    if code == 0:
        watch.print_summary()
        return
    if was_stopped:
        left = [] if pipeline.is_local else queue.jobs_of(Path.cwd())
        still = (
            f" Still in the queue, from an earlier Snakemake; to stop them: scancel {' '.join(left)}." if left else ""
        )
        raise Stopped(f"stopped; no finished work is lost. The same command resumes.{still} Snakemake's output: {log}")
    reasons = pipeline.errors or [_last_words(log, code)]
    error = UserError if code == UserError.exit_code or pipeline.is_rejected else EverstepError
    raise error("\n".join([*dict.fromkeys(reasons), f"Snakemake's output: {log}"]))


def _last_words(log: Path, code: int) -> str:
    """Return the last line of the log, or, if it is empty, what is known without it."""
    if log.stat().st_size:
        return snakefile.last_line(log)
    is_full = shutil.disk_usage(log.parent).free < LEAST_FREE
    why = f": the disk of {log.parent} is full" if is_full else ""
    return f"Snakemake ended with code {code} before it could write anything{why}"


def snakemake(config: Path | None, profile: str, settings: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the command of Snakemake; its own arguments come last, so that they win.

    Raises UserError outside of a project.
    """
    _check_project()
    command = [sys.executable, "-P", "-m", "snakemake"]
    command += ["--snakefile", str(rules)] if (rules := submission.submitted_rules()) else []
    command += ["--configfile", str(config)] if config else []
    command += ["--config", *(f"set={given}" for given in settings)] if settings else []
    # these options take every word after them, also a target; --profile takes one
    return [*command, "--profile", profile_of(profile), *arguments]


def _check_project() -> None:
    if not any(place.is_file() for place in SNAKEFILES):
        raise UserError(
            f"{Path.cwd()} has no Snakefile: change to the folder of a project, or make one with `everstep new FOLDER`"
        )


def detach(
    config: Path | None, profile: str, settings: Sequence[str], arguments: Sequence[str], typed: Sequence[str]
) -> str:
    """Submit a job of SLURM that runs the pipeline as it is now; return what to type next.

    `arguments` go to Snakemake; `typed` is what the user types to repeat it. Raises UserError outside of a project, for
    another profile than of SLURM, for a mistake in the experiment, and if SLURM rejects the job.
    """
    _check_project()
    given = Path(profile_of(profile))
    detached.check(given)
    submitted, lines = submission.freeze(config, settings, given)
    return "\n".join([*lines, detached.submit(submitted, arguments, typed, LOGS)])


def profile_of(name: str) -> str:
    """Return the folder of a profile: the name itself if it is one, else that of the project, else the shipped one."""
    places = [Path(), Path("profiles"), shipped.FOLDER / "profiles"]
    for place in places:
        if (place / name / "config.yaml").is_file():
            return str(place / name)
    known = sorted({path.parent.name for place in places[1:] for path in place.glob("*/config.yaml")})
    raise UserError(f"--profile {name}: neither a folder with a config.yaml, nor one of {', '.join(known)}")
