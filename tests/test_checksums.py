"""A file with another checksum than the setting is rejected."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workflow_lib import config
from workflow_lib.errors import DataError
from workflow_lib.plugins import checksums
from workflow_lib.plugins.checksums import Checksums

CONTENT = bytes(range(256)) * 10_000  # several blocks
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "some.data").write_bytes(CONTENT)
    return tmp_path / "some.data"


def test_the_checksums_are_those_of_the_standard_library(file: Path) -> None:
    assert checksums.checksums(file, "sha256", "md5") == {"sha256": SHA256, "md5": MD5}


@pytest.mark.parametrize(
    "asked",
    [{}, {"sha256": SHA256}, {"md5": MD5}, {"sha256": SHA256.upper(), "md5": MD5}],
    ids=lambda asked: list(asked),
)
def test_the_right_file_is_accepted(asked: dict[str, str], file: Path) -> None:
    Checksums.model_validate(asked).verify(file)


@pytest.mark.parametrize(("asked", "name"), [({"sha256": SHA256}, "sha256"), ({"md5": MD5, "sha256": None}, "md5")])
def test_a_truncated_file_is_rejected_with_its_checksum(asked: dict[str, Any], name: str, file: Path) -> None:
    file.write_bytes(CONTENT[:-1])
    found = hashlib.new(name, CONTENT[:-1]).hexdigest()
    with pytest.raises(DataError, match=f"some.data: its {name} is {found}, but data.params.{name} is {asked[name]}"):
        Checksums.model_validate(asked).verify(file)


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_the_checksum_of_a_folder_is_that_of_the_shell_command(name: str, tmp_path: Path) -> None:
    for number, path in enumerate(("b.png", "a/ü b.png", "a/c/d.png", "B.png", "a.png", ".hidden", "a/.git/x")):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(bytes([number]))
    (tmp_path / "data" / "link.png").symlink_to("b.png")
    lines = (checksums.__doc__ or "").splitlines()
    command = next(line for line in lines if line.startswith("    find")).replace("sha256sum", f"{name}sum")
    printed = subprocess.run(["bash", "-c", command], cwd=tmp_path / "data", capture_output=True, text=True, check=True)
    assert checksums.checksums(tmp_path / "data", name) == {name: printed.stdout.split()[0]}
    Checksums.model_validate({name: printed.stdout.split()[0]}).verify(tmp_path / "data")
    (tmp_path / "data" / "a.png").rename(tmp_path / "data" / "c.png")
    with pytest.raises(DataError, match=f"data: its {name} is "):
        Checksums.model_validate({name: printed.stdout.split()[0]}).verify(tmp_path / "data")


@pytest.mark.parametrize("wrong", ["", "abc", SHA256[:-1] + "g", MD5, SHA256 + "0"])
def test_an_invalid_checksum_is_rejected(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Checksums(sha256=wrong)


def test_a_checksum_is_not_part_of_a_runs_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, checked = (
        config.Data.model_validate({"name": "npz", "params": {"path": "data.npz"} | more})
        for more in ({}, {"sha256": SHA256})
    )
    assert config.identity(plain) == config.identity(checked)
