"""The contract for data sets works outside of this repository, and names the requirement that is violated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets.contract import ChecksumContract
from tests.support.repository import ROOT

RINGS = '''
"""Points on two rings, in a user's text file."""
from pathlib import Path
from pydantic import Field
from workflow_lib.plugins.checksums import Checksums

class Params(Checksums):
    path: Path = Field(description="x, y and the ring of a point on each line")

def open_source(params, root):
    import numpy as np
    from workflow_lib.data import Source, SourceFile

    path = root / params.path
    params.verify(path)
    points = np.loadtxt(path, np.float32)
    return Source(
        targets={"train": points[:, 2].astype(np.int64)},
        read=lambda split, rows: points[rows, :2],
        is_thread_safe=True,
        classes=("inner", "outer"),
        files=(SourceFile.of(path),),
    )
'''

CONTRACT = """
import numpy as np
import pytest
from tests.datasets.contract import ChecksumContract

class TestRings(ChecksumContract):
    name = "mine.rings"

    @pytest.fixture
    def params(self, tmp_path):
        self.write(tmp_path, 0)
        return {"path": "points.txt"}

    def change(self, folder):
        self.write(folder, 1)

    def write(self, folder, seed):
        angle, ring = np.random.default_rng(seed).uniform(0, 6, 200), np.arange(200) % 2
        points = np.stack([(ring + 1) * np.cos(angle), (ring + 1) * np.sin(angle), ring], axis=1)
        np.savetxt(folder / "points.txt", points)
"""

VIOLATIONS = {
    "test_any_rows_read_the_same_as_within_all_rows": ("points[rows, :2]", "points[rows, :2] * np.float32(len(rows))"),
    "test_the_users_files_are_not_changed": ("points = np", "path.chmod(0o600 ^ path.stat().st_mode); points = np"),
    "test_every_open_gives_the_same_source": ("classes=(", "content=__import__('uuid').uuid4().hex, classes=("),
}


def run_contract(folder: Path, rings: str, test: str = "") -> subprocess.CompletedProcess[str]:
    """Run the contract on the data set, in a folder outside of this repository."""
    (folder / "mine").mkdir()
    (folder / "mine" / "rings.py").write_text(rings)
    (folder / "test_rings.py").write_text(CONTRACT)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-k", test, "test_rings.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
    )


def test_a_users_data_set_inherits_the_contract(tmp_path: Path) -> None:
    """Slow: all tests of the contract, in a separate process."""
    shown = run_contract(tmp_path, RINGS)
    assert shown.returncode == 0, shown.stdout
    tests = [name for name in dir(ChecksumContract) if name.startswith("test_")]
    assert f"\n{len(tests)} passed in" in shown.stdout
    assert len(tests) > 20


@pytest.mark.parametrize("test", VIOLATIONS)
def test_the_contract_names_the_violated_requirement(tmp_path: Path, test: str) -> None:
    valid, invalid = VIOLATIONS[test]
    assert valid in RINGS
    shown = run_contract(tmp_path, RINGS.replace(valid, invalid), test)
    assert shown.returncode == 1, shown.stdout
    assert f"::{test}" in shown.stdout, shown.stdout
