"""A file with another checksum than the one asked for is not taken."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workflow_lib import checksums, config
from workflow_lib.checksums import Checksums
from workflow_lib.errors import DataError

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
def test_the_right_file_is_taken(asked: dict[str, str], file: Path) -> None:
    Checksums.model_validate(asked).verify(file)


@pytest.mark.parametrize(("asked", "name"), [({"sha256": SHA256}, "sha256"), ({"md5": MD5, "sha256": None}, "md5")])
def test_a_file_cut_short_is_refused_with_what_it_has(asked: dict[str, Any], name: str, file: Path) -> None:
    file.write_bytes(CONTENT[:-1])
    found = hashlib.new(name, CONTENT[:-1]).hexdigest()
    with pytest.raises(DataError, match=f"some.data: its {name} is {found}, but data.params.{name} is {asked[name]}"):
        Checksums.model_validate(asked).verify(file)


@pytest.mark.parametrize("wrong", ["", "abc", SHA256[:-1] + "g", MD5, SHA256 + "0"])
def test_what_is_no_checksum_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        Checksums(sha256=wrong)


def test_a_checksum_does_not_change_what_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (
        config.Data.model_validate({"name": "npz", "params": {"path": "data.npz"} | more})
        for more in ({}, {"sha256": SHA256})
    )
    assert config.identity(one) == config.identity(two)
