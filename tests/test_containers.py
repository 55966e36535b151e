"""The files that build an image agree with each other, and contain what the package needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from workflow_lib import snakefile
from workflow_lib.errors import ConfigError

PLACE = "/opt/everstep/source/"


def copied_by_docker() -> set[tuple[str, str]]:
    """Return what Dockerfile copies: (source, path in the image)."""
    lines = re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    pairs = set()
    for *sources, target in map(str.split, lines):
        pairs |= {(name, target + name if target.endswith("/") else target) for name in sources}
    return pairs


def test_both_images_are_built_from_the_same_files_and_these_make_the_package(tmp_path: Path) -> None:
    copied = copied_by_docker()
    names = {name for name, _ in copied}
    assert copied == {(name, PLACE + name) for name in names}
    section = (ROOT / "everstep.def").read_text().partition("%files\n")[2].partition("\n\n")[0]
    assert {tuple(line.split()) for line in section.splitlines()} == copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == names

    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    assert (tmp_path / "scripts" / "image").stat().st_mode & 0o111, "the image runs it"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"]
    subprocess.run(build, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (tmp_path / "dist").iterdir()
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"workflow_lib/pipeline/Snakefile", "workflow_lib/pipeline/rules/train.smk"} <= inside
    assert "constraints.txt" in (tmp_path / "scripts" / "image").read_text()


def test_an_image_is_used_only_where_it_is_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "everstep.sif"
    image.touch()
    given = {"EVERSTEP_CONTAINER": str(image)}
    assert snakefile.container_image(False, given) is None
    assert snakefile.container_image(True, given) == str(image)
    assert snakefile.container_image(True, {"EVERSTEP_CONTAINER": "docker://a/b:1"}) == "docker://a/b:1"
    with pytest.raises(ConfigError, match="needs the variable EVERSTEP_CONTAINER"):
        snakefile.container_image(True, {})
    with pytest.raises(ConfigError, match="no such file"):
        snakefile.container_image(True, {"EVERSTEP_CONTAINER": str(tmp_path / "other.sif")})
    assert snakefile.given_to_job([f"container={image}", "code=12"]) == {"container": str(image), "code": "12"}
