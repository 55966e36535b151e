"""The folder of a rendezvous is private; the next launcher of the user removes those of killed launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.warm import until
from workflow_lib.distributed import rendezvous
from workflow_lib.slurm import job, nodes

HOLDER = """
import os, time
from workflow_lib.distributed import rendezvous
with rendezvous.open_rendezvous(1, 0) as meeting:
    rank = os.fork()
    if rank:
        print(rank, meeting.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_private_and_removed_at_the_end(temporary: Path) -> None:
    with rendezvous.open_rendezvous(1, 0) as meeting:
        assert meeting.folder.stat().st_mode & 0o777 == 0o700
        assert list(temporary.iterdir()) == [meeting.folder]
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_launcher_is_removed_when_its_last_rank_is_gone(temporary: Path) -> None:
    others = [temporary / name for name in ("everstep-gpus", f"{rendezvous.PREFIX}file")]
    others[0].mkdir()
    others[1].touch()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    job = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment)
    assert job.stdout is not None
    rank, folder = job.stdout.readline().split()
    try:
        job.kill()
        job.wait()
        with rendezvous.open_rendezvous(1, 0):
            assert Path(folder).is_dir()  # a rank may still read there
    finally:
        os.kill(int(rank), signal.SIGKILL)
        job.stdout.close()

    def is_swept() -> bool:
        with rendezvous.open_rendezvous(1, 0):
            return not Path(folder).exists()

    until(is_swept, "the folder to be removed")
    assert sorted(temporary.iterdir()) == sorted(others)


def test_a_node_has_its_number_where_slurm_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(job, "TIMEOUT_S", 0.1)
    assert nodes.described([1], {"SLURM_STEP_NODELIST": "n[1-2]"}) == "node 1"
