"""The files of a lease on damaged, full and old file systems."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash import RAISED, SURVIVED, run_forked
from tests.support.faults import FileFault
from tests.support.leases import take
from workflow_lib.errors import WorkspaceBusy
from workflow_lib.store import lease as module
from workflow_lib.store.lease import Holder, current, holder_of


def test_leases_work_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", reject)
    with take(tmp_path, "a"):
        assert holder_of(tmp_path) == Holder.this_process("a")
        with pytest.raises(WorkspaceBusy):
            take(tmp_path, "b")
    assert take(tmp_path, "b").number == 2


def test_a_lease_without_contents_is_taken_over_after_the_timeout(tmp_path: Path) -> None:
    """After a power loss, a file may exist without its content."""
    take(tmp_path).release()
    (tmp_path / "leases" / "000002.json").touch()
    begun = time.monotonic()
    with take(tmp_path, "b", timeout_s=0.5) as lease:
        assert time.monotonic() - begun >= 0.5
        assert lease.number == 3


@pytest.mark.parametrize("mode", ["before", "torn", "unsynced", "unnamed"])
def test_the_next_contender_gets_the_workspace_after_a_crash_at_any_operation(tmp_path: Path, mode: Any) -> None:
    def work(workspace: Path) -> None:
        take(workspace, "crashed").release()

    for count in range(1, 99):
        workspace = tmp_path / str(count)
        workspace.mkdir()
        fault = FileFault(mode, f"{workspace}/*", count=count, rank=-1)
        code = run_forked(partial(work, workspace), [fault])
        with take(workspace, "next", timeout_s=3600) as lease:
            assert lease.holds()
        shutil.rmtree(workspace)
        if code == SURVIVED:
            break
        assert code == -signal.SIGKILL
    assert count > 5


def test_a_full_disk_leaves_no_lease(tmp_path: Path) -> None:
    fault = FileFault("ENOSPC", f"{tmp_path}/leases/*", rank=-1, times=0)
    assert run_forked(lambda: take(tmp_path), [fault]) == RAISED
    assert holder_of(tmp_path) is None
    with take(tmp_path) as lease:
        assert lease.number == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"attempt": "a", "pid": "x"}', f'{{"start_time": {10**400}}}']
)
def test_a_lease_that_cannot_be_read_has_an_unknown_holder(tmp_path: Path, content: str) -> None:
    (tmp_path / "000003.json").write_text(content)
    assert current(tmp_path) == (3, module.UNKNOWN)
