"""`everstep run` on a real pseudo-terminal, and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.workflow.conftest import WAIT_S, Project

LONG = "name: long\nmodel: {params: {hidden: [8]}}\ntraining: {epochs: 1000000}\n"
COMMAND = [sys.executable, "-m", "workflow_lib", "run"]


class Terminal:
    """A command on a pseudo-terminal of 80 columns that is its controlling terminal, as in a shell."""

    def __init__(self, command: list[str], folder: Path, columns: int = 80) -> None:
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=other,
            stdout=other,
            stderr=other,
            env=os.environ | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(other)
        self._written = b""

    @property
    def shown(self) -> str:
        """Everything that was written, without the sequences that move the cursor and set colours."""
        text = self._written.decode(errors="replace").replace("\r", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)

    def read_until(self, condition: Callable[[], object] | None) -> None:
        """Read until the condition is true, or to the end."""
        deadline = time.monotonic() + WAIT_S
        while condition is None or not condition():
            assert time.monotonic() < deadline, self.shown
            if select.select([self._main], [], [], 1.0)[0]:
                try:
                    self._written += os.read(self._main, 1 << 16)
                except OSError:  # the other end is closed
                    assert condition is None, self.shown
                    return

    def press_ctrl_c(self) -> None:
        os.write(self._main, b"\x03")

    def end(self) -> int:
        """Return the exit code after the command has ended by itself."""
        self.read_until(None)
        os.close(self._main)
        return self.process.wait(timeout=WAIT_S)


def test_ctrl_c_saves_and_says_so_and_a_second_one_kills(project: Project) -> None:
    project.write(LONG)
    command = [*COMMAND, project.config]
    first = Terminal(command, project.folder)
    first.read_until(lambda: re.search(r"training +\d+/1000000 ", first.shown))
    first.press_ctrl_c()
    assert first.end() == 75
    text = " ".join(first.shown.split())
    assert re.search(r"stopped by SIGINT at step [1-9]\d*; saved", text)
    view, _, message = first.shown.rpartition("everstep run: ")
    assert message.startswith("stopped; no finished work is lost. The same command resumes")
    assert max(len(line.rstrip()) for line in view.splitlines()) <= 80
    (attempt,) = project.folder.glob("work/runs/*/*/attempts/*.json")
    saved = json.loads(attempt.read_text())["step"]

    second = Terminal(command, project.folder, columns=200)
    log = next(project.folder.glob("logs/train/long/*.log"))  # Snakemake removes it before the job starts again

    def has_resumed() -> bool:
        with suppress(FileNotFoundError):
            return f"resumes at step {saved}" in log.read_text()
        return False

    second.read_until(has_resumed)
    second.press_ctrl_c()
    second.read_until(lambda: "stopping: " in second.shown)
    second.press_ctrl_c()
    assert second.end() in (75, 130)  # 75 if it had saved before the second Ctrl-C came


def test_the_pipeline_is_told_in_few_lines_without_a_terminal(finished: Project) -> None:
    lines = (finished.folder / "printed.txt").read_text().splitlines()
    assert len(lines) <= 40
    text = "\n".join(lines)
    for expected in (
        r"tiny: \d+ jobs to run: data, 2 trials, 3 trainings, 3 evaluations, 3 exports, report",
        r"digits-\w+: 1,168 train, 270 val, 359 test samples",
        r"trial 1: val_accuracy 0\.\d+ at epoch \d",
        r"train tuned: val_loss \d\.\d+ at epoch \d",
        r"evaluate tiny-\S+: test accuracy 0\.\d+ \[0\.\d+, 0\.\d+\]",
        r"  best run +tuned \(of 3\): tiny-",
        r"  report +results/tiny/report.html",
    ):
        assert re.search(expected, text), f"{expected}\n{text}"
    (log,) = re.findall(r"Snakemake's output: (\S+)", text)
    assert "rule train:" in (finished.folder / log).read_text()


def test_a_repeated_run_says_what_there_is_also_without_a_home(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/none")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    again = finished.everstep("run", finished.config)
    assert again.returncode == 0, again.stderr
    assert "nothing to do: tiny is finished (3 runs)" in again.stdout
    assert "results/tiny/report.html" in again.stdout


@pytest.mark.parametrize(
    ("settings", "arguments", "code", "expected"),
    [
        ("training.epochs=0", [], 2, "training.epochs"),
        ("training.epochs=3", ["--", "--cores", "2", "--dry-run"], 0, "This was a dry-run"),
        ("seed=1", ["--profile", "nothing"], 2, "--profile nothing: neither a folder with a config.yaml"),
        ("seed=1", ["--", "--no-such-option"], 2, "--no-such-option"),
    ],
)
def test_a_mistake_gives_one_message_and_a_dry_run_the_text_of_snakemake(
    finished: Project,
    settings: str,
    arguments: list[str],
    code: int,
    expected: str,
) -> None:
    shown = finished.everstep("run", finished.config, "--set", settings, *arguments)
    assert shown.returncode == code, shown.stdout + shown.stderr
    assert expected in (shown.stderr if code else shown.stdout)
    assert code == 0 or (shown.stdout == "" and len(shown.stderr.splitlines()) <= 3)


def test_the_command_of_trace_makes_the_file_again(finished: Project) -> None:
    path = next((finished.folder / "results/tiny/runs").glob("*/evaluation.json"))
    before = path.read_bytes()
    traced = finished.everstep("trace", str(path.relative_to(finished.folder))).stdout
    (again,) = [line.split(maxsplit=1)[1] for line in traced.splitlines() if line.startswith("again ")]
    path.chmod(0o644)
    path.write_text("{}")
    verb, *arguments = shlex.split(again)
    assert verb == "everstep"
    finished.everstep(*arguments)
    assert measured(path.read_bytes()) == measured(before)


def measured(statement: bytes) -> dict[str, object]:
    metrics: dict[str, object] = json.loads(statement)["metrics"]
    return metrics
