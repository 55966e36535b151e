"""The digest of a plugin's code: its module, and the modules of the user's project that it imports.

The digest is computed from the syntax trees. Comments, docstrings, formatting, the version of Python and the path of a
file do not change it: a module is identified by its position in the order of imports, not by its name. Modules are
read, never imported. Modules of the project are the files below the folder in which the plugin's import path begins,
and below the current folder. Installed packages are not included. Of this library only data sets and models are; the
stage numbers represent the rest. An import whose name is computed at run time is not found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from workflow_lib.files import blake2b

SHIPPED = ("workflow_lib.datasets.", "workflow_lib.models.")
IGNORED = {"ctx", "kind", "type_comment", "type_ignores"}  # fields of a syntax tree that do not change the behaviour
# Modules of this library that plugins import, and their names in version 0.1: a move keeps the digests of plugins.
NAMES_IN_0_1 = {"workflow_lib.data": "workflow_lib.shards", "workflow_lib.plugins.checksums": "workflow_lib.checksums"}
INSTALLED = {"site-packages", "dist-packages"}
Name = str


@dataclass(frozen=True)
class Code:
    """The texts of a plugin's modules by name, the plugin first, and the digest of their code (32 hex digits)."""

    digest: str
    texts: dict[Name, str]


def read(name: Name, path: Path) -> Code:
    """Return the code of the module with this name in this file, and of the modules that it imports."""
    modules = _Modules(name, path)
    hasher = blake2b()
    for dumped in modules.dumps():
        hasher.update(f"{len(dumped)} ".encode() + dumped)
    return Code(hasher.hexdigest(), {name: text.decode(errors="replace") for name, text in modules.texts.items()})


def files_of(name: Name, path: Path) -> dict[Name, Path]:
    """Return the file of the module, and those of the project's modules that it imports, by name."""
    modules = _Modules(name, path)
    for _ in modules.dumps():
        pass
    return modules.paths


def of_text(text: bytes) -> str:
    """Return the digest of one module's code, without the modules that it imports: 32 hex digits."""
    tree = _parsed(text)
    dumped = text if tree is None else _Modules("alone", Path("/alone.py"), ()).dump(tree, "").encode()
    return blake2b(dumped).hexdigest()


class _Modules:
    """Modules in the order in which imports reach them."""

    def __init__(self, name: Name, path: Path, roots: Sequence[Path] | None = None) -> None:
        self._top = name.partition(".")[0]
        if roots is None:
            root = path.absolute().parents[name.count(".") + (path.name == "__init__.py")]
            roots = tuple(dict.fromkeys((root, Path.cwd())))
        self._roots = roots
        self._numbers: dict[Name, int] = {name: 0}
        self.paths = {name: path}
        self._pending = [name]
        self.texts: dict[Name, bytes] = {}

    def dumps(self) -> Iterator[bytes]:
        """Yield the syntax tree of each module that is imported, directly or not, as text: equal for equal trees."""
        self._number_packages(self._pending[0])
        for name in self._pending:  # grows during the loop
            path = self.paths[name]
            self.texts[name] = text = path.read_bytes()
            tree = _parsed(text)
            inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
            try:
                yield text if tree is None else self.dump(tree, inside).encode()
            except RecursionError:  # nested too deeply
                yield text

    def _number_packages(self, name: Name) -> list[str]:
        """Return the numbers of the packages that contain a module and run before it; empty packages have none."""
        parts = name.split(".")
        return [number for depth in range(1, len(parts)) if (number := self._number(".".join(parts[:depth])))]

    def _number(self, name: Name) -> str | None:
        """Return the number of a module, such as `#3`; None if it is outside of the project, or an empty package."""
        if name not in self._numbers:
            path = self._find(name)
            if path is None or (path.name == "__init__.py" and _is_empty(path)):
                return None
            self._numbers[name] = len(self._numbers)
            self.paths[name] = path
            self._pending.append(name)
        return f"#{self._numbers[name]}"

    def _find(self, name: Name) -> Path | None:
        if name.partition(".")[0] == "workflow_lib" and not name.startswith(SHIPPED):
            return None
        for root in self._roots:
            if not INSTALLED.isdisjoint(root.parts) and name.partition(".")[0] != self._top:
                continue
            stem = root.joinpath(*name.split("."))
            for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
                if path.is_file():
                    return path
        return None

    def _imported(self, name: Name) -> str:
        """Return an import as text: by number if the module is part of the project, else by name."""
        own = self._number(name)
        if own is None and self._find(name) is None:
            return NAMES_IN_0_1.get(name, name)
        return "".join([*self._number_packages(name), own or "#"])

    def dump(self, value: Any, inside: Name) -> str:
        """Return the tree as text: equal for equal trees, whatever version of Python parsed them."""
        if isinstance(value, list):
            return f"[{','.join(self.dump(item, inside) for item in value)}]"
        if not isinstance(value, ast.AST):
            return hex(value) if type(value) is int else ascii(value)
        if isinstance(value, ast.Import):
            return ";".join(f"import {self._imported(alias.name)} as {alias.asname}" for alias in value.names)
        if isinstance(value, ast.ImportFrom):
            return self._dump_from(value, inside)
        if isinstance(value, ast.Constant):
            return f"Constant({self.dump(value.value, inside)})"
        fields = []
        for name, item in ast.iter_fields(value):
            kept = _without_docstrings(value, item) if isinstance(item, list) else item
            if kept is not None and kept != [] and name not in IGNORED:
                fields.append(f"{name}={self.dump(kept, inside)}")
        return f"{type(value).__name__}{self._dynamic(value, inside)}({','.join(fields)})"

    def _dump_from(self, node: ast.ImportFrom, inside: Name) -> str:
        try:
            base = resolve_name("." * node.level + (node.module or ""), inside)
        except ImportError:  # above the top package: the import itself fails with a message
            listed = ",".join(f"{alias.name} as {alias.asname or alias.name}" for alias in node.names)
            return f"from {'.' * node.level}{node.module} import {listed}"
        names = []
        for alias in node.names:
            number = self._imported(inner) if self._find(inner := f"{base}.{alias.name}") else None
            names.append(f"{number or alias.name} as {alias.asname or alias.name}")
        return f"from {self._imported(base)} import {','.join(names)}"

    def _dynamic(self, node: ast.AST, inside: Name) -> str:
        """Return the number of the module that a call such as import_module("mine.net") imports by a literal name."""
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            return ""
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        target = node.args[0].value
        if called not in ("import_module", "__import__") or not isinstance(target, str):
            return ""
        try:
            return self._imported(resolve_name(target, inside)) if target.strip(".") else ""
        except ImportError:
            return ""


def _without_docstrings(parent: ast.AST, items: Sequence[Any]) -> list[Any]:
    """Return the items without docstrings and `pass`; adjacent strings of an f-string are merged.

    Versions of Python differ in how they split an f-string into constants.
    """
    if not isinstance(parent, ast.JoinedStr):
        return [item for item in items if not _has_no_effect(item)]
    merged: list[Any] = []
    for item in items:
        if isinstance(item, ast.Constant) and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(str(merged[-1].value) + str(item.value))
        elif not isinstance(item, ast.Constant) or item.value:
            merged.append(item)
    return merged


def _has_no_effect(item: Any) -> bool:
    """Return True for a docstring, any other string as a statement, and `pass`."""
    is_text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
    return is_text or isinstance(item, ast.Pass)


@lru_cache(maxsize=256)
def _parsed(text: bytes) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the import itself fails with a message
        return None


def _is_empty(path: Path) -> bool:
    tree = _parsed(path.read_bytes())
    return tree is not None and all(_has_no_effect(item) for item in tree.body)
