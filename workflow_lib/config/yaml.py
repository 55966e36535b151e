"""Parse YAML 1.2; each value has an origin, the file and line or the override that set it. Ambiguity is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from workflow_lib.errors import ConfigError, shortened

KeyPath = tuple[str | int, ...]
LARGEST = 500_000  # values in one file: aliases of aliases could fill the memory
MOST_DIGITS = 1000  # of a whole number; by default, Python cannot print more than 4,300


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield every key path in a tree, parents first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def dotted(path: KeyPath) -> str:
    """Return the path as users write it: `training.epochs`, `sweep.list[2]`. Long unknown names are shortened."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" if text else shortened(part)
    return text


@dataclass(frozen=True)
class Origins:
    """The origin of each value. All instances are equal, so that experiments compare by value alone."""

    entries: dict[KeyPath, str] = field(default_factory=dict, compare=False)

    def of(self, path: KeyPath) -> str | None:
        """Return the origin of the value, or of the nearest section around it; None if it has none."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.entries:
                return self.entries[path[:length]]
        return None

    def place(self, path: KeyPath) -> str:
        """Return the start of a message about the value: its origin and its dotted name."""
        origin = self.of(path)
        return f"{origin}: {dotted(path)}" if origin else dotted(path)

    def exactly(self, path: KeyPath) -> str | None:
        """Return the origin of the value itself; None if it is a default."""
        return self.entries.get(path)


class _Yaml12(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader of YAML 1.2: `1e-3` is a number, `no` and `on` are strings, which a boolean setting accepts."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_TAG = "tag:yaml.org,2002:"
_Yaml12.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Yaml12.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml12.add_implicit_resolver(
    _TAG + "int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Yaml12.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Yaml12.add_implicit_resolver(_TAG + "merge", re.compile(r"^<<$"), ["<"])


class _Tree:
    """Converts YAML nodes to values and origins; raises ConfigError for ambiguous ones."""

    def __init__(self, where: str, numbered: bool) -> None:
        self.where = where
        self.numbered = numbered
        self.origins: dict[KeyPath, str] = {}
        self.open: list[yaml.Node] = []
        self.count = 0

    def origin(self, node: yaml.Node) -> str:
        return f"{self.where}:{node.start_mark.line + 1}" if self.numbered else self.where

    def error(self, node: yaml.Node, path: KeyPath, what: str) -> ConfigError:
        place = f"{dotted(path)}: " if path else ""
        return ConfigError(f"{self.origin(node)}: {place}{what}")

    def value(self, node: yaml.Node, path: KeyPath, origin: str | None = None) -> Any:
        self.count += 1
        if any(node is outer for outer in self.open):
            raise self.error(node, path, "this alias contains itself")
        if self.count > LARGEST:
            raise self.error(node, path, f"more than {LARGEST:,} values: do aliases refer to aliases?")
        self.origins[path] = origin or self.origin(node)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self.bad_tag(node, path)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self.open.pop()

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                if len(text) > MOST_DIGITS:
                    raise self.error(node, path, f"{shortened(text)} has more than {MOST_DIGITS:,} digits")
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            if kind == "float":
                return self.number(node, path)
        except ValueError as error:
            raise self.error(node, path, f"{shortened(repr(text))} is not a {kind}") from error
        raise self.bad_tag(node, path)

    def bad_tag(self, node: yaml.Node, path: KeyPath) -> ConfigError:
        return self.error(
            node, path, f"the tag {shortened(node.tag.replace(_TAG, '!!'))} is not allowed; write plain values"
        )

    def number(self, node: yaml.ScalarNode, path: KeyPath) -> float:
        text = node.value.lower()
        number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise self.error(node, path, f"{shortened(node.value)} is not allowed; numbers are finite")
        return number

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        # Merged keys first, wherever `<<` is: the mapping's own keys override them.
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                values = {**self.merged(key_node, value_node, path), **values}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key, line = self.key(key_node, path), key_node.start_mark.line + 1
            if key in lines:
                both = f"on lines {lines[key]} and {line}" if line != lines[key] else f"twice on line {line}"
                raise self.error(key_node, (*path, key), f"the key occurs {both}; keep one")
            lines[key] = line
            values[key] = self.value(value_node, (*path, key), self.origin(key_node))
        return values

    def merged(self, key: yaml.Node, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """Return the keys that `<<` merges; of several mappings, the first that has a key wins."""
        values: dict[str, Any] = {}
        for source in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            if not isinstance(source, yaml.MappingNode):
                raise self.error(key, path, "`<<` takes a mapping or a list of mappings")
            values.update(self.value(source, path))
        return values

    def key(self, node: yaml.Node, path: KeyPath) -> str:
        if node.tag not in (_TAG + "str", _TAG + "int", _TAG + "bool"):
            raise self.error(node, path, "a key must be a plain name; put it in quotes if it is meant as text")
        return str(node.value)


def parse_yaml(text: str, where: str, *, numbered: bool = True) -> tuple[Any, dict[KeyPath, str]]:
    """Return the value of a YAML document and the origin of each value in it; `where` names the text in errors."""
    try:
        text.encode()
        node = yaml.compose(text, Loader=_Yaml12)
        tree = _Tree(where, numbered)
        return (None, {}) if node is None else (tree.value(node, ()), tree.origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark and numbered else where
        context = f" {error.context}" if error.context else ""
        raise ConfigError(f"{place}: not valid YAML{context}: {error.problem}{_tab_hint(text, mark)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeEncodeError as error:
        raise ConfigError(f"{ascii(where)}: not valid Unicode text") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error


def _tab_hint(text: str, mark: yaml.Mark | None) -> str:
    line = text.splitlines()[mark.line : mark.line + 1] if mark else []
    indent = line[0][: len(line[0]) - len(line[0].lstrip())] if line else ""
    return "; indent with spaces, not with tabs" if "\t" in indent else ""
