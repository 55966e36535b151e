"""The free memory of a process is that of the tightest cgroup around it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from workflow_lib.runtime import memory

GB = 1 << 30


def v2(folder: Path, limit: int | str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def v1(folder: Path, limit: int, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 5\ntotal_inactive_file {cached}\n")


def process(tmp_path: Path, line: str) -> Path:
    (tmp_path / "cgroup").write_text(f"3:cpu:/elsewhere\n{line}\n")
    return tmp_path / "cgroup"


def test_every_cgroup_around_the_process_counts(tmp_path: Path) -> None:
    v2(tmp_path / "job" / "step", "max", 1 * GB)
    v2(tmp_path / "job", 8 * GB, 3 * GB)
    left = memory.free_in_cgroups(tmp_path, process(tmp_path, "0::/job/step"))
    assert left == [5 * GB]


@pytest.mark.parametrize(("make", "line", "below"), [(v2, "0::/job", ""), (v1, "4:memory:/job", "memory")])
def test_cached_files_count_as_free(make: object, line: str, below: str, tmp_path: Path) -> None:
    make(tmp_path / below / "job", 8 * GB, 7 * GB, 2 * GB)  # type: ignore[operator]
    assert memory.free_in_cgroups(tmp_path, process(tmp_path, line)) == [3 * GB]


def test_a_cgroup_over_its_limit_has_no_free_memory(tmp_path: Path) -> None:
    v2(tmp_path / "job", 2 * GB, 3 * GB)
    assert memory.free_in_cgroups(tmp_path, process(tmp_path, "0::/job")) == [0]


def test_without_cgroups_only_the_machine_limits(tmp_path: Path) -> None:
    assert memory.free_in_cgroups(tmp_path, tmp_path / "none") == []
    assert 0 < memory.free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
