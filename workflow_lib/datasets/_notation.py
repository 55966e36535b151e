"""The grammar of numbers in a table, and texts that are numbers or dates in another notation.

A number is written as programs write it: ASCII digits, a decimal point, an exponent. Settings give a table another
decimal mark, and a mark between thousands; nothing else changes then. Anything else is a text, and a column of texts
that a person would read as numbers is rejected rather than taken for categories.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

# `3E7` without a sign or a point is more often a code than a number, and no program writes 30,000,000 like that.
NUMBER = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-][0-9]{1,4})?"
    r"|[+-](?:[0-9]+)[eE][0-9]{1,4}"
    r"|[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)[eE][0-9]{1,4}"
    r"|[+-]?(?:inf|infinity)",
    re.IGNORECASE,
)
PLAIN = re.compile(r"([+-]?)(0|[1-9][0-9]*|)(?:\.([0-9]*))?")
NEARLY_ALL = 0.9  # of the texts of a column, to take it for what they are
CODE = re.compile(r"0[0-9]+")  # 007: more often a code than a number
CURRENCY = r"(?:[$€£¥₹₽₩¢₺₴]|US\$|USD|EUR|GBP|CHF|JPY|CNY|INR|Rs\.?|kr\.?|zł|Kč)"
AROUND = re.compile(rf"^{CURRENCY}\s*|\s*(?:{CURRENCY}|%|‰|percent|pct\.?)$")
CORE = re.compile(r"\d+(?:[ ,.'’]\d{3})*(?:[.,]\d+)?(?:[eEdD][+-]?\d+)?|\d+(?:,\d{2})*,\d{3}(?:\.\d+)?|[.,]\d+")
MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s?[ap]\.?m\.?)?(?:\s?(?:z|utc|gmt|[+-]\d{2}:?\d{2}))?"
DATE = re.compile(
    rf"(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:\d{{4}}|\d{{2}})"
    rf"|\d{{1,2}}\.?[- ]?{MONTH}[- ,]*(?:\d{{4}}|\d{{2}})|{MONTH}[- ]\d{{1,2}},?[- ]\d{{4}})(?:[T ,]+{TIME})?|{TIME}",
    re.IGNORECASE,
)
WITH_UNIT = re.compile(r"[+-]?\d+(?:[.,]\d+)?\s*([^\d\s.,:/_-][^\d]{0,11})")
# As spreadsheets and languages write that there is no value; `data.params.missing` has those that are taken as such.
LIKE_MISSING = frozenset(("none", "nan", "na", "n/a", "#n/a", "#na", "null", "nil", "<na>", "nat", "?", ".", "#value!"))


def is_number(text: str) -> bool:
    """Return True when the text is a number as programs write it."""
    return NUMBER.fullmatch(text) is not None


# Characters that mark thousands, and the decimal mark that can follow; one kind of space is as good as another.
MARKS = {",": (",", r"\."), ".": (".", ","), " ": (" \u00a0\u2009\u202f", "[.,]"), "'": ("'\u2019", "[.,]")}
GROUPED = {
    mark: re.compile(rf"[+-]?[1-9][0-9]{{0,2}}(?:[{marks}][0-9]{{3}})+(?:{decimal}[0-9]*)?")
    for mark, (marks, decimal) in MARKS.items()
}


@dataclass(frozen=True)
class Notation:
    """Settings for reading the texts of a table: which are missing, and the marks in a number."""

    missing: frozenset[str] = frozenset()
    decimal: str = "."
    thousands: str | None = None

    def plain(self, text: str) -> str | None:
        """Return the number as programs write it; None if the text is no number in this notation.

        Thousands are marked in all places or in none: `1.234.567,5` and `1234567,5`, but not `1234.567,5`.
        """
        if self.thousands is not None and not text.isdigit():
            marks, _ = MARKS[self.thousands]
            if any(mark in text for mark in marks):
                if not GROUPED[self.thousands].fullmatch(text):
                    return None
                text = text.translate(dict.fromkeys(map(ord, marks)))
        if self.decimal != ".":
            if "." in text:
                return None
            text = text.replace(self.decimal, ".")
        return text if is_number(text) else None

    def name(self, text: str) -> str:
        """Return the text, or for a number its shortest decimal in this notation: `1`, `1,0` and `+1` are `1`."""
        plain = self.plain(text)
        return text if plain is None else name_of(plain).replace(".", self.decimal)

    def example(self) -> str:
        """Return numbers as they are written here."""
        return "1234.5 or 1e+05".replace(".", self.decimal)


# From the plainest: of those that fit, the ones with the fewest settings are advised.
ADVISED = tuple(
    Notation(decimal=decimal, thousands=thousands)
    for thousands, decimal in ((None, ","), (",", "."), (" ", "."), ("'", "."), (".", ","), (" ", ","), ("'", ","))
)


def advice(texts: Sequence[str]) -> str:
    """Return the settings by which nearly all of the texts are numbers, for a message; empty if there are none.

    `1,234` is a number with a decimal comma and with marked thousands: then both are named, and the value of each.
    """
    words: dict[int, list[str]] = {}
    for notation in ADVISED:
        values = [value for text in texts if (value := notation.plain(text)) is not None]
        if values and len(values) >= NEARLY_ALL * len(texts):
            settings = ['data.params.decimal: ","'] if notation.decimal == "," else []
            settings += [f'data.params.thousands: "{notation.thousands}"'] if notation.thousands else []
            words.setdefault(len(settings), []).append(f"{' and '.join(settings)} reads {texts[0]} as {values[0]}")
    return "; ".join(words[min(words)]) if words else ""


def name_of(text: str) -> str:
    """Return the text, or for a number the shortest decimal of its exact value: `1`, `1.0` and `+1` are `1`.

    A number with leading zeros is a code, and stays as it is.
    """
    if text[-1:] not in "0123456789." or not is_number(text):
        return text
    plain = text
    if "e" in text or "E" in text:
        plain = format(Decimal(text), "f")
    match = PLAIN.fullmatch(plain)
    if match is None or not (match[2] or match[3]):
        return text
    sign, whole, fraction = match[1], match[2] or "0", (match[3] or "").rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return f"-{value}" if sign == "-" and value != "0" else value


def folded(name: str) -> str:
    """Return what names have in common that differ in case, spaces, leading zeros or Unicode form alone."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def other_notation(text: str, notation: Notation | None = None) -> str | None:
    """Return what the text is to a person, a number or a date, if it is one that is not a number here."""
    value = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").strip()
    if DATE.fullmatch(value):
        return "a date or a time"
    if (notation or Notation()).plain(text) is not None:
        return None
    if value.startswith("(") and value.endswith(")"):
        value = value[1:-1].strip()
    if "." in value or "," in value:  # 12.50- is accounting; 40- is 40 and more
        value = value.rstrip("-")
    for _ in range(2):
        value = AROUND.sub("", value.strip().lstrip("+-").strip())
    return "a number in another notation" if CORE.fullmatch(value) else None


def common_unit(texts: Iterable[str]) -> str | None:
    """Return the unit that nearly all of the texts end with, each behind a number: `0.50 kg`."""
    units: dict[str, int] = {}
    total = 0
    for text in texts:
        total += 1
        if match := WITH_UNIT.fullmatch(text):
            units[match[1].strip()] = units.get(match[1].strip(), 0) + 1
    most = max(units, key=lambda unit: units[unit], default=None)
    return most if most is not None and units[most] >= 0.9 * total else None
