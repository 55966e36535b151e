"""The programs on docs/predicting.md work as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import workflow_lib
from tests.predict.conftest import finished
from tests.support.repository import ROOT
from tests.support.trained import Trained

ABSENT = ["workflow_lib", "torch", "onnx", "safetensors", "sklearn", "snakemake"]  # a user's program has none of them
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/predicting.md").read_text(), re.MULTILINE | re.DOTALL)


def printed(project: Trained, marker: str) -> str:
    """Run the program with this text beside the exported model, without ABSENT; return what it prints."""
    (program,) = (program for program in PROGRAMS if marker in program)
    folder = project.results / "runs" / project.runs[0]
    (project.root / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.modules |= dict.fromkeys({ABSENT})\n{program}"]
    shown = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_an_image_is_classified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, brightness in (("dark", 40), ("light", 200)):
        for number in range(30):
            pixels = random.integers(brightness - 40, brightness + 40, (12, 17, 3)).astype(np.uint8)
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    project = finished(tmp_path, "images")
    photo = tmp_path / "photos" / "light" / "3.png"
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    name, probability = printed(project, "photo.png").split()
    expected = workflow_lib.predict(project.runs[0], photo)
    assert (name, expected["file"][0]) == ("light", "3.png")
    assert float(probability) == pytest.approx(expected["p(light)"][0], abs=1e-5)
    folder = workflow_lib.predict(project.runs[0], tmp_path / "photos")
    assert folder["file"].tolist() == sorted(
        f"{name}/{number}.png" for name in ("dark", "light") for number in range(30)
    )
    assert (folder["predicted"] == [file.partition("/")[0] for file in folder["file"]]).mean() > 0.9


def test_a_table_with_strings_and_missing_values_is_predicted(numbers: Trained) -> None:
    text = printed(numbers, "houses.csv")
    expected = workflow_lib.predict(numbers.runs[0], "houses.csv")["predicted"][:5]
    np.testing.assert_allclose(np.array(text.strip("[] \n").split(), float), expected, rtol=1e-5)
    assert ",," in Path("houses.csv").read_text()
