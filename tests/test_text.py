from __future__ import annotations

import pytest

from workflow_lib import text


def test_a_count_has_the_noun_in_its_number() -> None:
    assert [text.count(number, "run") for number in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]


def test_a_large_number_has_fewer_digits() -> None:
    assert [text.decimal(value) for value in (0.12345, 1234.5678, 12345, None)] == ["0.1235", "1,234.6", "12,345", "–"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0 s"),
        (1.25, "1.2 s"),
        (119, "119 s"),
        (120, "2.0 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (1e6, "12 d"),
    ],
)
def test_a_duration_has_the_largest_unit_of_which_it_has_two(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_a_size_is_in_megabytes_or_gigabytes() -> None:
    assert [text.byte_size(size) for size in (300_000, 999e6, 1e9)] == ["0.3 MB", "999.0 MB", "1.0 GB"]


def test_columns_are_aligned() -> None:
    rows = [["run", "step"], ["a", "7"]]
    assert text.aligned(rows) == ["run  step", "a    7"]
    assert text.aligned(rows, right=[1]) == ["run  step", "a       7"]


def test_nested_settings_have_dotted_names() -> None:
    assert text.flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_wrapped_text_is_indented_and_keeps_long_words() -> None:
    long = "results/" + "x" * 20
    assert text.wrapped(f"a model of {long}", 16, "> ", "  ") == ["> a model of", f"  {long}"]
    assert max(map(len, text.wrapped(long, 16, "> ", "  ", breaks_words=True))) == 16
    assert text.wrapped("short-lived runs", 18, "> ", "  ") == ["> short-lived runs"]
