"""A data set or a model is found by its file name or import path, and a wrong one is explained."""

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
    """A project folder with a package `mine`, gone from the interpreter afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize(("kind", "names"), [("data", ["digits", "npz", "table"]), ("models", ["cnn", "mlp"])])
def test_a_file_of_the_package_is_a_plugin_of_its_name(kind: str, names: list[str]) -> None:
    assert set(names) <= set(plugins.available(kind))
    for name in plugins.available(kind):
        assert plugins.load(kind, name).__name__ == f"workflow_lib.{FOLDERS[kind]}.{name}"


def test_a_dotted_name_is_an_import_path_from_the_project(folder: Path) -> None:
    (folder / "mine" / "net.py").write_text(GOOD)
    module = plugins.load("models", "mine.net")
    assert module.build(module.Params(width=3), None) == 3


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("models", "mpl", r"no model `mpl`; did you mean `mlp`\? \(there are: .*cnn.*mlp"),
        ("data", "digit", r"no data set `digit`; did you mean `digits`\?"),
        ("data", "_archive", r"no data set `_archive`"),
        ("models", "../mlp", r"no model `../mlp`"),
        ("models", "", r"no model ``"),
        ("models", "mine.nothing", r"no module `mine.nothing` to import as a model"),
        ("models", "nowhere.at.all", r"no module `nowhere.at.all`"),
        ("models", "a..b", r"no model `a..b`"),
        ("models", ".b", r"no model `.b`"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all(kind: str, name: str, said: str) -> None:
    with pytest.raises(PluginError, match=said) as refused:
        plugins.load(kind, name)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (GOOD.replace("Section)", "object)"), "needs `class Params"),
        (GOOD.replace("def build", "def make"), "needs a function `build`"),
        ("import a_module_that_nobody_has", "needs the module `a_module_that_nobody_has`"),
        ("def build(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_plugin_says_what_it_lacks(folder: Path, source: str, said: str) -> None:
    (folder / "mine" / "net.py").write_text(source)
    with pytest.raises(PluginError, match=said) as refused:
        plugins.load("models", "mine.net")
    assert "mine.net" in str(refused.value)


OF_DATA = GOOD.replace("build(params, spec)", "open_source(params, root)")


@pytest.mark.parametrize(
    ("said", "known"),
    [("", "classification"), ("def task(params): return 'language' if params.width > 8 else 'regression'", "language")],
)
def test_a_data_set_says_what_is_learned_from_it(folder: Path, said: str, known: str) -> None:
    (folder / "mine" / "texts.py").write_text(f"{OF_DATA}\n{said}\n")
    assert plugins.task("mine.texts", {"width": 9}) == known


def test_an_unknown_task_is_refused_with_those_there_are(folder: Path) -> None:
    (folder / "mine" / "texts.py").write_text(f"{OF_DATA}\ndef task(params): return 'ranking'\n")
    with pytest.raises(PluginError, match="task.. says 'ranking'; allowed: classification, regression, language"):
        plugins.task("mine.texts", {})


def test_nothing_is_known_of_a_data_set_that_does_not_say_so(folder: Path) -> None:
    (folder / "mine" / "texts.py").write_text(OF_DATA)
    (folder / "mine" / "net.py").write_text(GOOD)
    assert plugins.known("mine.texts", {}) == plugins.Known()
    assert plugins.takes("mine.net") == ("images", "tables", "texts")


def test_knowledge_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "mine" / "texts.py").write_text(f"{OF_DATA}\ndef known(params): return {{'size': 8}}\n")
    with pytest.raises(PluginError, match=r"texts.py: known\(\) gives dict; it is to give a plugins.Known"):
        plugins.known("mine.texts", {})


@pytest.mark.parametrize(
    "said", ["'pictures'", "size=8", "size=(8, 8, 3)", "size=(0, 8)", "classes='ten'", "samples=0"]
)
def test_knowledge_that_cannot_be_is_refused(folder: Path, said: str) -> None:
    source = OF_DATA + f"\nfrom workflow_lib.plugins import Known\ndef known(params): return Known({said})\n"
    (folder / "mine" / "texts.py").write_text(source)
    with pytest.raises(PluginError, match=r"texts.py: known\(\) failed: .* for Known"):
        plugins.known("mine.texts", {})


@pytest.mark.parametrize("said", ["'images'", "None", "()", "('pictures',)", "3"])
def test_inputs_that_there_are_not_are_refused(folder: Path, said: str) -> None:
    (folder / "mine" / "net.py").write_text(f"{GOOD}\nTAKES = {said}\n")
    with pytest.raises(PluginError, match=r"net.py: TAKES is .*; allowed: a tuple of some of images, tables, texts"):
        plugins.takes("mine.net")


def test_a_file_that_ends_the_program_is_named(folder: Path) -> None:
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


def test_the_code_of_a_plugin_is_that_of_all_it_imports_of_its_package(folder: Path) -> None:
    """Also inside a function, in a circle, and of files that nobody has imported yet."""
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
    seen = [plugins.text_digest(module)]
    for name, text in (inside | {"net": GOOD + IMPORTS}).items():
        (folder / "mine" / f"{name}.py").write_text(f"{text}\nchanged = 1")
        seen.append(plugins.text_digest(module))
    assert len(set(seen)) == len(inside) + 2
    for name in outside:
        (folder / "mine" / f"{name}.py").write_text("changed = 1")
    assert plugins.text_digest(module) == seen[-1]
    assert set(sys.modules) & {f"mine.{name.replace('/', '.')}" for name in inside} == set()


@pytest.mark.parametrize(
    ("name", "helpers"),
    [
        ("image_folder", {"_folder", "_notation"}),
        ("npz", {"_archive"}),
        ("table", {"_columns", "_notation", "_tables"}),
        ("text", {"_documents", "_folder"}),
        ("digits", set()),
    ],
)
def test_the_code_of_a_shipped_data_set_is_its_own_and_that_of_its_helpers(
    folder: Path, name: str, helpers: set[str]
) -> None:
    package = shutil.copytree(Path(plugins.__file__).parents[1], folder / "workflow_lib")
    module = ModuleType(f"workflow_lib.datasets.{name}")
    module.__file__ = str(package / "datasets" / f"{name}.py")
    before, counted = plugins.text_digest(module), set()
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        path.write_text(f"{text}\nchanged = 1")
        if plugins.text_digest(module) != before:
            counted.add(str(path.relative_to(package)))
        path.write_text(text)
    assert counted == {f"datasets/{one}.py" for one in {name, *helpers}}
