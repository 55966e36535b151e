from __future__ import annotations

import os

import pytest

from tests.support.crash import SURVIVED, fork, wait
from workflow_lib import processes


def test_a_writer_is_alive_until_it_ends() -> None:
    assert processes.is_writer_alive(processes.writer_mark())
    reader, writer = os.pipe()
    pid = fork(lambda: os.write(writer, processes.writer_mark().encode()))
    mark = os.read(reader, 20).decode()
    assert int(mark[12:], 16) == pid
    assert mark[:12] == processes.writer_mark()[:12]
    assert wait(pid) == SURVIVED
    assert processes.is_writer_alive(mark) is False


@pytest.mark.parametrize(
    "changed", ["workflow_lib.processes.host", "workflow_lib.processes.machine", "workflow_lib.processes.boot_id"]
)
def test_of_a_writer_elsewhere_nothing_is_known(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = processes.writer_mark()
    monkeypatch.setattr(changed, lambda: "another")
    processes._table.cache_clear()
    try:
        assert processes.is_writer_alive(mark) is None
    finally:
        processes._table.cache_clear()


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under the number of a user of its host."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert processes.user() == "54321"
