"""The digest of code changes with what the code does, and with nothing else."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from workflow_lib.plugins import source_digest

NET = '''
"""A network."""
import math
from .blocks import block
from mine import numbers as n
def build(params, spec):
    """Return a network."""
    width = params.width * 2  # twice
    return f"{width!r:>{n.SIZE}}" + "a" "b", block(1.0, True, None, 10**9), math.pi
class Empty:
    pass
'''
SAME = [
    NET.replace("# twice", "# two times"),
    NET.replace('    """Return a network."""\n', ""),
    NET.replace('"""A network."""\n', ""),
    NET.replace("    pass\n", '    """Nothing."""\n'),
    NET.replace('"a" "b"', "'ab'").replace("params.width * 2", "(params.width\n        * 0x2)"),
    NET.replace("\n", "\n\n"),
    NET.replace("10**9", "10 ** 9").replace("1.0", "1.00"),
]
OTHER = [
    NET.replace("* 2", "* 3"),
    NET.replace("1.0", "1"),
    NET.replace("True", "1"),
    NET.replace("None", "0"),
    NET.replace('"a" "b"', '"a b"'),
    NET.replace("!r", "!s"),
    NET.replace(">{", "<{"),
    NET.replace("from .blocks import block", "from .blocks import other as block"),
    NET.replace("from .blocks import block", "from .numbers import block"),
    NET.replace("import math", "import cmath as math"),
    NET.replace("class Empty:", "@n.known\nclass Empty:"),
    NET.replace("params, spec", "params, spec=None"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a package `mine`: its network `net` uses `blocks` and `numbers`."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"__init__": "", "net": NET, "blocks": "def block(*a): ...", "numbers": "SIZE = 3"}.items():
        path = tmp_path / "mine" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def digest(name: str = "mine.net") -> str:
    return source_digest.read(name, Path(*name.split(".")).with_suffix(".py")).digest


@pytest.mark.parametrize("text", SAME)
def test_comments_docstrings_and_formatting_do_not_change_the_digest(text: str) -> None:
    assert text != NET
    assert ast.parse(text)
    before = digest()
    Path("mine/net.py").write_text(text)
    assert digest() == before


@pytest.mark.parametrize("text", OTHER)
def test_every_change_of_behaviour_changes_the_digest(text: str) -> None:
    assert text != NET
    assert ast.parse(text)
    before = digest()
    Path("mine/net.py").write_text(text)
    assert digest() != before


def test_the_place_of_a_file_does_not_change_the_digest(folder: Path) -> None:
    """Also under another name, and with the package that it belongs to."""
    before = digest()
    shutil.copy("mine/net.py", "mine/network.py")
    assert digest("mine.network") == before
    shutil.copytree("mine", "elsewhere/deeper")
    Path("elsewhere/deeper/net.py").write_text(NET.replace("from mine", "from elsewhere.deeper"))
    assert digest("elsewhere.deeper.net") == before


def test_helpers_are_identified_by_their_code_not_their_names() -> None:
    Path("mine/net.py").write_text("from mine import blocks as a, numbers as b\n")
    before = digest()
    Path("mine/net.py").write_text("from mine import numbers as a, blocks as b\n")
    assert digest() != before
    for old, new in (("blocks", "x"), ("numbers", "blocks"), ("x", "numbers")):
        Path(f"mine/{old}.py").rename(f"mine/{new}.py")
    assert digest() == before


@pytest.mark.parametrize(
    "line",
    [
        "import mine.late",
        "from mine.late import *",
        "from .late import value",
        "from . import late",
        "import plain",
        "import importlib; importlib.import_module('mine.late')",
        "from importlib import import_module; import_module('.late', 'mine')",
        "from mine.package.inner import value",
        "def f():\n    if True:\n        from mine import late",
    ],
)
def test_every_imported_module_of_the_project_changes_the_digest(line: str) -> None:
    Path("mine/package").mkdir()
    files = [Path(name) for name in ("mine/late.py", "plain.py", "mine/package/__init__.py", "mine/package/inner.py")]
    for path in files:
        path.write_text("value = 1\n")
    Path("mine/net.py").write_text(f"{line}\n")
    before = digest()
    for path in files:
        path.write_text("value = 2\n")
    assert digest() != before


def test_the_code_of_packages_changes_the_digest() -> None:
    before = digest()
    Path("mine/__init__.py").write_text('"""Mine."""\n')
    assert digest() == before
    Path("mine/__init__.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\n")
    assert digest() != before


def test_installed_packages_and_the_rest_of_everstep_are_left_out() -> None:
    names = source_digest.read("mine.net", Path("mine/net.py")).texts
    assert list(names) == ["mine.net", "mine.blocks", "mine.numbers"]
    Path("mine/net.py").write_text(
        "import torch, pytest\nfrom workflow_lib import plan\nfrom workflow_lib.plugins import x"
    )
    assert list(source_digest.read("mine.net", Path("mine/net.py")).texts) == ["mine.net"]


def test_a_file_that_cannot_be_parsed_is_digested_by_its_bytes() -> None:
    Path("mine/net.py").write_text("def broken(:")
    before = digest()
    Path("mine/net.py").write_text("def broken(: # x")
    assert digest() != before
    Path("mine/net.py").write_text("x = " + "-" * 5000 + "1")
    assert digest()


def test_the_digest_is_the_same_for_every_version_of_python() -> None:
    """Recorded once, with Python 3.11: `ast.dump` says other things of the same code in each version."""
    assert digest() == "a57207b2df5f6469ad26781a0c37c8a2"
