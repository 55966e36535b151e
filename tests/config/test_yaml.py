"""YAML is read as 1.2, and what is ambiguous is refused with file, line and key."""

from __future__ import annotations

from typing import Any

import pytest

from workflow_lib.config.yaml import parse_yaml
from workflow_lib.errors import ConfigError


def value(text: str) -> Any:
    return parse_yaml(text, "x.yaml")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+1.5e-3", 0.0015),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("漢字 é 😀", "漢字 é 😀"),
        ("!!float 1", 1.0),
        ("!!str 1", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: Any) -> None:
    read = value(f"key: {text}")["key"]
    assert read == expected
    assert type(read) is type(expected)


def test_booleans_of_yaml_1_1_are_valid_keys() -> None:
    assert value("on: 1\nno: 2\n1: 3") == {"on": 1, "no": 2, "1": 3}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 3", ["x.yaml:4", "a.b", "lines 2 and 4"]),
        ("{a: 1, a: 2}", ["x.yaml:1", "twice on line 1"]),
        ("a: 1\nb: .nan", ["x.yaml:2", "b", ".nan", "finite"]),
        ("a: [1, -.inf]", ["a[1]", "-.inf"]),
        ("a: 1e999", ["a", "1e999", "finite"]),
        ("a:\n\tb: 1", ["x.yaml:2", "tabs"]),
        ("a: [1, 2", ["x.yaml:2", "flow sequence"]),
        ("a: b: c", ["x.yaml:1", "mapping values"]),
        ("a: *nowhere", ["x.yaml:1", "alias"]),
        ("a: &a [*a]", ["a[0]", "contains itself"]),
        ("a: !!python/object/apply:os.getcwd []", ["x.yaml:1", "a", "tag", "not allowed"]),
        ("a: !!int 1.5", ["a", "'1.5'"]),
        ("? [1, 2]\n: 3", ["x.yaml:1", "plain name"]),
        ("--- 1\n--- 2", ["x.yaml:2", "single document"]),
        ("a: \udcff", ["Unicode"]),
        ("a: \x01", ["control characters"]),
        ("[" * 5000 + "]" * 5000, ["nested too deeply"]),
        ("a: &a 1\nb:\n  <<: *a", ["x.yaml:3", "`<<` takes a mapping"]),
    ],
)
def test_ambiguous_or_invalid_text_is_rejected_with_its_place(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as rejected:
        value(text)
    for part in parts:
        assert part in str(rejected.value)


def test_aliases_of_aliases_are_limited() -> None:
    levels = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    levels += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="do aliases refer to aliases"):
        value("\n".join(levels))


def test_own_keys_override_merged_ones_and_the_first_merged_mapping_wins() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo:\n  <<: [{x: 9}, *b]"
    assert value(text) == {"base": {"x": 1, "y": 2}, "one": {"x": 1, "y": 3}, "two": {"x": 9, "y": 2}}


def test_each_value_has_its_line_as_origin() -> None:
    _, origins = parse_yaml("a:\n  b: 1\n  c: [1,\n    2]", "x.yaml")
    assert origins[("a", "b")] == "x.yaml:2"
    assert origins[("a", "c")] == "x.yaml:3"
    assert origins[("a", "c", 1)] == "x.yaml:4"


def test_a_merged_value_has_the_line_of_its_definition_as_origin() -> None:
    _, origins = parse_yaml("base: &b {x: 1}\n\none:\n  <<: *b\n  y: 2", "x.yaml")
    assert origins[("one", "x")] == "x.yaml:1"
    assert origins[("one", "y")] == "x.yaml:5"
