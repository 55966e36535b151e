"""Classes and functions by import path: found, called with arguments that they have, and part of the code's digest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workflow_lib import plugins
from workflow_lib.plugins import PluginError

LOSSES = """
def dice(outputs, targets, *, smooth=1.0):
    return smooth

class Focal:
    def __init__(self, gamma, alpha=0.5):
        self.gamma = gamma

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create a project with the module `ours.losses`, which the interpreter forgets after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "losses.py").write_text(LOSSES)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "ours"]:
        del sys.modules[name]


def test_an_object_is_found() -> None:
    assert plugins.load_object("loss", "ours.losses:dice")(0, 0, smooth=2.0) == 2.0
    assert plugins.load_object("loss", "ours.losses:Focal")(gamma=2).gamma == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "ours.losses",
            "`ours.losses` is not an import path of a loss: mypackage.module:Name; did you mean `ours:losses`?",
        ),
        ("ours.losses:dcie", "there is no `dcie`; did you mean `dice`? (loss `ours.losses:dcie`)"),
        ("ours.losses:NUMBER", "loss `ours.losses:NUMBER` is a int; allowed: a class or a function"),
        ("ours.loses:dice", "no module `ours.loses` to import for a loss; did you mean `ours.losses`? Give"),
        ("our.losses:dice", "no module `our.losses` to import for a loss; did you mean `ours.losses`? Give"),
        ("__main__:dice", "loss `__main__:dice` is defined in a notebook or a script, which "),
        ("ours.losses.dice:x", "no module `ours.losses.dice` to import for a loss; did you mean `ours.losses:dice`?"),
    ],
)
def test_what_is_not_there_is_told(target: str, message: str) -> None:
    with pytest.raises(PluginError) as raised:
        plugins.load_object("loss", target)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("dice", {}, None),
        ("dice", {"smooth": 2.0}, None),
        ("dice", {"smoth": 2.0}, "`smoth` is no argument of it; did you mean `smooth`? (arguments: smooth)"),
        ("dice", {"outputs": 2.0}, "`outputs` is passed by Everstep; leave it out"),
        ("Focal", {"gamma": 1}, None),
        ("Focal", {}, "needs `gamma`"),
        ("Focal", {"self": 1}, "`self` is no argument of it"),
    ],
)
def test_arguments_are_compared_with_the_signature(name: str, given: dict[str, Any], problem: str | None) -> None:
    found = plugins.load_object("loss", f"ours.losses:{name}")
    provided = ("outputs", "targets") if name == "dice" else ()
    said = plugins.argument_problem(found, given, provided)
    assert (said or "").startswith(problem or "")
    assert bool(said) == bool(problem)


def test_the_code_behind_an_object_is_that_of_its_module(project: Path) -> None:
    before = plugins.object_code("loss", "ours.losses:dice")
    (project / "ours" / "losses.py").write_text(f"# a comment\n{LOSSES}")
    assert plugins.object_code("loss", "ours.losses:dice").digest == before.digest
    (project / "ours" / "losses.py").write_text(LOSSES.replace("return smooth", "return -smooth"))
    assert plugins.object_code("loss", "ours.losses:dice").digest != before.digest


def test_the_code_of_an_installed_package_is_its_version() -> None:
    code = plugins.object_code("metric", "torchmetrics.classification:BinaryF1Score")
    assert code.texts["torchmetrics.classification"].startswith("torchmetrics==")
