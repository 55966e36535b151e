"""The terminal or the pipe of `everstep run` closes, or Ctrl-Z suspends it; a short process stands for Snakemake."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from workflow_lib.errors import EverstepError
from workflow_lib.live import pipeline

SHOWN_CURSOR, HIDDEN_CURSOR = b"\x1b[?25h", b"\x1b[?25l"
WATCHED = """
import signal, sys, time
from pathlib import Path
from workflow_lib.live import recorder

def save(*_):
    recorder.record("message", text="saving")
    while not Path("release").exists():
        time.sleep(0.02)
    Path("saved").touch()
    sys.exit(0)

if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # like Snakemake
    signal.signal(signal.SIGINT, save)
recorder.record("message", text="begun")
while not Path("finish").exists():
    time.sleep(0.02)
    recorder.record("message", text="goes on")
Path("finished").touch()
"""
RUN = """
import sys
from workflow_lib.live import pipeline
pipeline.run([sys.executable, "watched.py"], ["everstep", "run"])
"""


@contextmanager
def running(
    folder: Path, prefix: Sequence[str] = (), stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a pipeline in the folder, and let it finish at the end of the block."""
    (folder / "watched.py").write_text(WATCHED)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [*prefix, sys.executable, "-c", RUN]
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stdout, stderr=errors, start_new_session=True
        )
    with process:
        try:
            yield process
        finally:
            for name in ("release", "finish"):
                (folder / name).touch()


def test_a_death_without_a_word_names_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EverstepError, match=r"^Snakemake ended with code 3 before it could write anything\n"):
        pipeline.run([sys.executable, "-c", "raise SystemExit(3)"], ["everstep", "run"])


def read_until(descriptor: int, text: bytes, found: bytes = b"") -> bytes:
    end = time.monotonic() + 60
    while text not in found:
        assert select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0], found[-1000:]
        part = os.read(descriptor, 1 << 16)
        assert part, found
        found += part
    return found


def test_a_pipe_that_is_closed_hides_the_pipeline_and_does_not_end_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"goes on")
        process.stdout.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)  # five times the time between two looks at the events
        (tmp_path / "finish").touch()
        assert process.wait(timeout=60) == 0
        assert (tmp_path / "finished").exists()


def test_hang_ups_stop_it_once_and_never_kill_its_jobs(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"begun")
        process.send_signal(signal.SIGHUP)
        seen = read_until(process.stdout.fileno(), b"saving")
        process.send_signal(signal.SIGHUP)  # a terminal that closes sends it to its session and to its foreground
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        (tmp_path / "release").touch()
        process.wait(timeout=60)
        assert (tmp_path / "saved").exists(), seen


def test_nohup_lets_it_go_on(tmp_path: Path) -> None:
    with running(tmp_path, ["nohup"]) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"begun")
        process.send_signal(signal.SIGHUP)
        (tmp_path / "finish").touch()
        assert process.wait(timeout=60) == 0
        assert (tmp_path / "finished").exists()


def test_in_the_background_of_a_script_ctrl_c_is_ignored_and_sigterm_saves(tmp_path: Path) -> None:
    with running(tmp_path, ["sh", "-c", 'trap "" INT; exec "$@"', "script"]) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"begun")
        process.send_signal(signal.SIGINT)
        read_until(process.stdout.fileno(), b"goes on")
        process.terminate()
        assert b"Ctrl-C kills" in read_until(process.stdout.fileno(), b"saving")
        (tmp_path / "release").touch()
        process.wait(timeout=60)
        assert (tmp_path / "saved").exists()


def test_ctrl_z_gives_the_terminal_to_the_shell_until_fg(tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    (tmp_path / "run.py").write_text(RUN)
    main, other = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "-i"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(other)
    try:
        os.write(main, f"{shlex.quote(sys.executable)} run.py\n".encode())
        read_until(main, b"goes on")
        os.write(main, b"\x1a")
        seen = read_until(main, b"Stopped")
        assert b"suspended: the pipeline goes on, unseen" in seen
        assert seen.rindex(SHOWN_CURSOR) > seen.rindex(b"suspended")
        os.write(main, b"bg\n")
        assert HIDDEN_CURSOR not in read_until(main, b"goes on")  # lines only
        os.write(main, b"fg\n")
        read_until(main, HIDDEN_CURSOR)  # of the live view
        (tmp_path / "finish").touch()
        os.write(main, b"echo code $?.\n")
        read_until(main, b"code 0.")
    finally:
        (tmp_path / "finish").touch()
        os.close(main)
        shell.wait(timeout=60)
    assert (tmp_path / "finished").exists()
