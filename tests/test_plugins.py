"""Plugins are found by file name or import path; errors in them name the file and what is allowed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from workflow_lib import plugins
from workflow_lib.plugins import PluginError
from workflow_lib.plugins.loader import FOLDERS

GOOD = """
from pydantic import Field
from workflow_lib.plugins import Section

class Params(Section):
    width: int = Field(8, ge=1, description="units")

def build(params, spec):
    return params.width
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create a project folder with a package `mine`, which the interpreter forgets after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize(("kind", "names"), [("data", ["digits", "npz", "table"]), ("models", ["cnn", "mlp"])])
def test_each_file_in_the_package_is_a_plugin(kind: str, names: list[str]) -> None:
    assert set(names) <= set(plugins.available(kind))
    for name in plugins.available(kind):
        assert plugins.load(kind, name).__name__ == f"workflow_lib.{FOLDERS[kind]}.{name}"


def test_a_dotted_name_is_an_import_path_from_the_project(folder: Path) -> None:
    (folder / "mine" / "net.py").write_text(GOOD)
    module = plugins.load("models", "mine.net")
    assert module.build(module.Params(width=3), None) == 3


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("models", "mpl", r"no model `mpl`; did you mean `mlp`\? \(there are: .*cnn.*mlp"),
        ("data", "digit", r"no data set `digit`; did you mean `digits`\?"),
        ("data", "_archive", r"no data set `_archive`"),
        ("models", "../mlp", r"no model `../mlp`"),
        ("models", "", r"no model ``"),
        ("models", "alone", r"no model `alone`; move alone.py into a folder, and give `folder.alone` \(there are"),
        ("data", "./alone.py", r"no data set `./alone.py`; move alone.py into a folder"),
        ("data", "mine/inner.py", r"no data set `mine/inner.py`; did you mean `mine.inner`\?"),
        ("models", "mine.nothing", r"no module `mine.nothing` to import as a model"),
        ("models", "nowhere.at.all", r"no module `nowhere.at.all`"),
        ("models", "a..b", r"no model `a..b`"),
        ("models", ".b", r"no model `.b`"),
    ],
)
def test_an_unknown_name_is_rejected_with_the_nearest_and_all_names(
    folder: Path, kind: str, name: str, message: str
) -> None:
    for file in ("alone.py", "mine/inner.py"):
        (folder / file).write_text(GOOD)
    with pytest.raises(PluginError, match=message) as rejected:
        plugins.load(kind, name)
    assert rejected.value.exit_code == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (GOOD.replace("Section)", "object)"), "needs `class Params"),
        (GOOD.replace("def build", "def make"), "needs a function `build`"),
        ("import a_module_that_nobody_has", "needs the module `a_module_that_nobody_has`"),
        ("def build(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_not_a_plugin_is_rejected_with_what_it_lacks(folder: Path, source: str, message: str) -> None:
    (folder / "mine" / "net.py").write_text(source)
    with pytest.raises(PluginError, match=message) as rejected:
        plugins.load("models", "mine.net")
    assert "mine.net" in str(rejected.value)


DATA_SET = GOOD.replace("build(params, spec)", "open_source(params, root)")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("", "classification"), ("def task(params): return 'language' if params.width > 8 else 'regression'", "language")],
)
def test_a_data_set_defines_its_task(folder: Path, source: str, expected: str) -> None:
    (folder / "mine" / "texts.py").write_text(f"{DATA_SET}\n{source}\n")
    assert plugins.task("mine.texts", {"width": 9}) == expected


def test_an_unknown_task_is_rejected_with_the_allowed_ones(folder: Path) -> None:
    (folder / "mine" / "texts.py").write_text(f"{DATA_SET}\ndef task(params): return 'ranking'\n")
    with pytest.raises(PluginError, match="task.. says 'ranking'; allowed: classification, language, multilabel"):
        plugins.task("mine.texts", {})


def test_a_data_set_without_known_has_no_facts(folder: Path) -> None:
    (folder / "mine" / "texts.py").write_text(DATA_SET)
    (folder / "mine" / "net.py").write_text(GOOD)
    assert plugins.facts("mine.texts", {}) == plugins.DatasetFacts()
    assert plugins.accepted_inputs("mine.net") == ("images", "tables", "texts")


def test_facts_of_another_type_are_rejected(folder: Path) -> None:
    (folder / "mine" / "texts.py").write_text(f"{DATA_SET}\ndef known(params): return {{'size': 8}}\n")
    with pytest.raises(PluginError, match=r"texts.py: known\(\) returns dict; allowed: a plugins.DatasetFacts"):
        plugins.facts("mine.texts", {})


@pytest.mark.parametrize(
    "arguments", ["'pictures'", "size=8", "size=(8, 8, 3)", "size=(0, 8)", "classes='ten'", "samples=0"]
)
def test_impossible_facts_are_rejected(folder: Path, arguments: str) -> None:
    known = f"from workflow_lib.plugins import DatasetFacts\ndef known(params): return DatasetFacts({arguments})"
    (folder / "mine" / "texts.py").write_text(f"{DATA_SET}\n{known}\n")
    with pytest.raises(PluginError, match=r"texts.py: known\(\) failed: .* for DatasetFacts"):
        plugins.facts("mine.texts", {})


VERSION_0_1 = """
from workflow_lib.plugins import Known, Section


class Params(Section):
    \"\"\"None.\"\"\"


def known(params):
    return Known("images", size=(8, 8), classes=3)


def open_source(params, root):
    return None
"""


def test_a_user_file_of_version_0_1_still_works_and_keeps_its_code_digest(folder: Path) -> None:
    (folder / "mine" / "old.py").write_text(VERSION_0_1)
    with pytest.warns(DeprecationWarning, match="workflow_lib.plugins.Known is now workflow_lib.plugins.DatasetFacts"):
        module = plugins.load("data", "mine.old")
    assert plugins.facts("mine.old", {}) == plugins.DatasetFacts("images", size=(8, 8), classes=3)
    assert plugins.code(module).digest == "7759886ecffa22084aaab1e1871ea56b"
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        plugins.Unknown  # noqa: B018


@pytest.mark.parametrize("takes", ["'images'", "None", "()", "('pictures',)", "3"])
def test_unknown_inputs_are_rejected(folder: Path, takes: str) -> None:
    (folder / "mine" / "net.py").write_text(f"{GOOD}\nTAKES = {takes}\n")
    with pytest.raises(PluginError, match=r"net.py: TAKES is .*; allowed: a tuple of some of images, tables, texts"):
        plugins.accepted_inputs("mine.net")


def test_a_file_that_exits_the_program_is_named(folder: Path) -> None:
    (folder / "mine" / "leaving.py").write_text("import sys\n\nsys.exit(0)\n")
    with pytest.raises(PluginError, match=r"plugin `mine.leaving` cannot be imported: SystemExit: 0"):
        plugins.load("models", "mine.leaving")


def test_a_task_that_fails_is_named(folder: Path) -> None:
    (folder / "mine" / "odd.py").write_text(
        f"{GOOD}\nopen_source = build\n\n\ndef task(params):\n    return {{}}['x']\n"
    )
    with pytest.raises(PluginError, match=r"odd.py: task\(\) failed: KeyError: 'x' \(.*odd.py:\d+\)"):
        plugins.task("mine.odd", {})


IMPORTS = """
def build():
    import math
    import mine.plain
    from mine import of_package
    from mine.parts import inner
    from . import relative
    from .relative import function
    from .. import too_far
"""


def test_the_code_of_a_plugin_includes_what_it_imports_from_its_package(folder: Path) -> None:
    """The imports may be inside a function, circular, or of modules that are not imported yet."""
    (folder / "mine" / "net.py").write_text(GOOD + IMPORTS)
    inside = {
        "__init__": "",
        "plain": "",
        "of_package": "",
        "relative": "import mine.net\nfrom .parts.deep import x",
        "parts/__init__": "",
        "parts/inner": "from ..deepest import y",
        "parts/deep": "def broken(:",
        "deepest": "",
    }
    outside = {"neighbour": "", "parts/neighbour": "", "math": ""}
    (folder / "mine" / "parts").mkdir()
    for name, text in (inside | outside).items():
        (folder / "mine" / f"{name}.py").write_text(text)
    module = plugins.load("models", "mine.net")
    seen = [plugins.code(module).digest]
    for name, text in (inside | {"net": GOOD + IMPORTS}).items():
        (folder / "mine" / f"{name}.py").write_text(f"{text}\nchanged = 1")
        seen.append(plugins.code(module).digest)
    assert len(set(seen)) == len(inside) + 2
    for name in outside:
        (folder / "mine" / f"{name}.py").write_text("changed = 1")
    assert plugins.code(module).digest == seen[-1]
    assert set(sys.modules) & {f"mine.{name.replace('/', '.')}" for name in inside} == set()


@pytest.mark.parametrize(
    ("name", "helpers"),
    [
        ("image_folder", {"_folder", "_images", "_notation"}),
        ("npz", {"_archive"}),
        (
            "table",
            {"_columns", "_excel", "_new_rows", "_notation", "_tables", "_target_settings", "_targets", "_values"},
        ),
        ("text", {"_bpe", "_documents", "_folder"}),
        ("digits", set()),
    ],
)
def test_the_code_of_a_shipped_data_set_is_its_file_and_its_helpers(folder: Path, name: str, helpers: set[str]) -> None:
    package = shutil.copytree(Path(plugins.__file__).parents[1], folder / "workflow_lib")
    module = ModuleType(f"workflow_lib.datasets.{name}")
    module.__file__ = str(package / "datasets" / f"{name}.py")
    before, counted = plugins.code(module).digest, set()
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        path.write_text(f"{text}\nchanged = 1")
        if plugins.code(module).digest != before:
            counted.add(str(path.relative_to(package)))
        path.write_text(text)
    assert counted == {f"datasets/{stem}.py" for stem in {name, *helpers}}
