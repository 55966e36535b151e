"""Resources that a Snakemake profile sets, each with its line in the file.

Snakemake evaluates expressions in a profile as Python. Here only arithmetic is evaluated, so no code is run.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from workflow_lib.config.yaml import Origins, parse_yaml
from workflow_lib.errors import ConfigError

FILE_NAMES = ("profile.v9+.yaml", "profile.yaml", "config.v9+.yaml", "config.yaml")


@dataclass(frozen=True)
class Profile:
    """A profile's file: its settings, and the line of each."""

    path: Path
    values: Mapping[str, Any]
    origins: Origins

    def asked(self, rule: str) -> dict[str, Any]:
        """Return the resources of a rule on its first try, named as Snakemake names them, and `threads`."""
        found = self._section("default-resources") | self._section("set-resources", rule)
        if rule in (threads := self._section("set-threads")):
            found["threads"] = threads[rule]
        return {key: evaluated(value, {"attempt": 1}) for key, value in found.items()}

    def places(self, rule: str) -> dict[str, str]:
        """Return file, line and key of each resource of a rule."""
        sections = (("default-resources",), ("set-resources", rule))
        paths = {key: (*section, key) for section in sections for key in self._section(*section)}
        if rule in self._section("set-threads"):
            paths["threads"] = ("set-threads", rule)
        return {key: f"{self.origins.of(path)} {'.'.join(path)}" for key, path in paths.items()}

    def _section(self, *path: str) -> dict[str, Any]:
        found: Any = self.values
        for part in path:
            found = _mapping(found).get(part)
        return _mapping(found)


def _mapping(value: Any) -> dict[str, Any]:
    """Return the mapping; a profile may also write it as a list of `name=value` or `rule:name=value`."""
    if not isinstance(value, list):
        return dict(value or {})
    found: dict[str, Any] = {}
    for item in value:
        name, _, text = str(item).partition("=")
        rule, _, key = name.rpartition(":")
        (found.setdefault(rule, {}) if rule else found)[key] = parse_yaml(text, str(item))[0]
    return found


def read_profile(path: Path) -> Profile:
    """Return the profile in a folder or file. Raises ConfigError if there is none."""
    files = [path / name for name in FILE_NAMES] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        there = ", ".join(sorted(str(found.parent) for found in Path("profiles").glob("*/*.yaml")))
        raise ConfigError(f"--profile {path}: no such profile; available: {there or 'none'}")
    values, origins = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a profile is a mapping of Snakemake's options (name: value)")
    return Profile(file, values, Origins(origins))


# without powers, which can take forever: 9 ** 9 ** 9
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max, "int": int, "round": round}


def evaluated(text: Any, names: Mapping[str, int]) -> Any:
    """Evaluate an expression of a profile, such as `4000 * attempt`; return the text itself if it is not arithmetic."""
    if not isinstance(text, str):
        return text
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return tree.value if _is_text(tree) else _arithmetic(tree, names)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError):
        return text


def _is_text(node: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _arithmetic(node: ast.expr, names: Mapping[str, int]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_arithmetic(left, names), _arithmetic(right, names))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_arithmetic(operand, names)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_arithmetic(argument, names) for argument in arguments))
    raise ValueError(ast.dump(node))
