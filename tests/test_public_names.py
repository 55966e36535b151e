"""The public names of the package: complete, documented, and imported when they are used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import workflow_lib
from tests.support.repository import ROOT
from workflow_lib import errors

NAMES = [name for name in workflow_lib.__all__ if name != "__version__"]


def names_for_type_checkers() -> set[str]:
    """Return the names that `workflow_lib/__init__.py` imports if TYPE_CHECKING."""
    tree = ast.parse(Path(str(workflow_lib.__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_public_names_are_sorted_and_the_same_for_type_checkers() -> None:
    assert sorted(workflow_lib.__all__) == workflow_lib.__all__
    assert names_for_type_checkers() == set(NAMES)
    assert set(workflow_lib.__all__) <= set(dir(workflow_lib))


def test_every_error_with_an_exit_code_is_public() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined - set(NAMES) == {"UnreadableError"}  # a CheckpointError, told apart only inside


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    value = getattr(workflow_lib, name)
    assert value.__name__ == name
    assert value.__doc__
    # dataclasses without a docstring get their signature
    assert not value.__doc__.startswith(f"{name}(")


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "Sorce"
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(workflow_lib, name)


def test_the_package_alone_imports_none_of_its_modules() -> None:
    code = "import sys, workflow_lib; print([name for name in sys.modules if name.startswith('workflow_lib.')])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_reference_lists_every_public_name() -> None:
    listed = {line.removeprefix("::: workflow_lib.") for line in (ROOT / "docs/api.md").read_text().splitlines()}
    assert set(NAMES) <= listed
