"""Users share the folder of leases, and cannot be harmed by what another user writes into it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.gpu_leases import HOLDER, lease, tickets
from workflow_lib.runtime import device_lease


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "gpus"


def test_the_folder_is_open_to_every_user_with_any_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with lease(folder, 1):
            assert os.umask(0o077) == 0o077
            modes = {path.name: path.stat().st_mode & 0o7777 for path in (folder, *folder.iterdir())}
    finally:
        os.umask(before)
    assert modes == {"gpus": 0o1777, "0.lock": 0o644, "000001.json": 0o644}


@pytest.fixture
def folder_for_all() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name) / "gpus"


ASK = """
import os, sys
from pathlib import Path
from workflow_lib.runtime.device_lease import lease_devices
os.setuid(54321)
def fail(reason): raise SystemExit(reason)
with lease_devices(1, "run", ("0", "1"), folder=Path(sys.argv[1]), report=fail) as got: print(*got)
with lease_devices(2, "run", ("0", "1"), folder=Path(sys.argv[1]), report=fail): pass
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become other users")
@pytest.mark.parametrize("first", [0, 12345])
def test_users_see_each_others_leases(folder_for_all: Path, first: int) -> None:
    """The second user may neither write nor remove a file of the first."""
    code = HOLDER.replace("\nwith", f"\nos.umask(0o077); os.setuid({first})\nwith")
    job = subprocess.Popen([sys.executable, "-c", code, str(folder_for_all)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    rank = int(job.stdout.readline())
    ask = [sys.executable, "-c", ASK, str(folder_for_all)]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, check=False)
        assert asked.stdout == "1\n", asked.stderr
        assert f"0 held by run xyz (pid {job.pid}" in asked.stderr
    finally:
        os.kill(rank, signal.SIGKILL)
        job.kill()
        job.communicate()
    asked = subprocess.run(ask, capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout) == (0, "0\n"), asked.stderr
    assert tickets(folder_for_all) == ["000001.json"], "it belongs to the first user, and counts for nothing"


def test_a_folder_that_is_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="gpus"), lease(folder, 1):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_a_folder_that_is_not_open_to_all_is_named(folder_for_all: Path) -> None:
    folder_for_all.mkdir(mode=0o700)
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(folder_for_all)], capture_output=True, text=True, check=False
    )
    assert f"PermissionError: [Errno 13] Permission denied: '{folder_for_all}'" in asked.stderr


def plant_text(path: Path) -> None:
    path.write_text("nonsense")


def plant_other_json(path: Path) -> None:
    path.write_text(json.dumps({"held": ["0", "1"], "pid": "x"}))


PLANTS: list[Callable[[Path], None]] = [plant_text, plant_other_json, Path.mkdir, lambda path: os.mkfifo(path)]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_file_that_is_not_a_ticket_holds_no_gpu(folder: Path, plant: Callable[[Path], None]) -> None:
    folder.mkdir()
    plant(folder / "000007.json")
    with lease(folder, 2) as got:
        assert got == ("0", "1")


def test_a_link_in_the_folder_is_neither_read_nor_removed(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "mine.txt").write_text("text")
    (folder / "000007.json").symlink_to(tmp_path / "mine.txt")
    with lease(folder, 2):
        pass
    assert (tmp_path / "mine.txt").read_text() == "text"


def test_text_of_another_user_cannot_break_the_log(folder: Path) -> None:
    device = device_lease.Ticket(1, "host", "me\x1b[2J", 5, "run\nfalse line", 1, ("0",))
    assert str(device) == "run?false line (pid 5, me?[2J on host)"
