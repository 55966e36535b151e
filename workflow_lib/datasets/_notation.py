"""The notation of numbers in a table, and the detection of numbers and dates in other notations.

A number has the notation that programs write: ASCII digits, a decimal point, an exponent. Settings can change the
decimal mark and add a mark between thousands. Anything else is a text. A column of texts that look like numbers to a
reader is rejected, since as categories they would lose their order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

# `3E7` without a sign or a point is rarely a number: no program writes 30,000,000 like that.
NUMBER = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-][0-9]{1,4})?"
    r"|[+-](?:[0-9]+)[eE][0-9]{1,4}"
    r"|[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)[eE][0-9]{1,4}"
    r"|[+-]?(?:inf|infinity)",
    re.IGNORECASE,
)
PLAIN = re.compile(r"([+-]?)(0|[1-9][0-9]*|)(?:\.([0-9]*))?")
NEARLY_ALL = 0.9  # fraction of a column's texts that must look alike to classify the column
CODE = re.compile(r"0[0-9]+")  # 007: probably a code
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
# Texts for a missing value in spreadsheets and programming languages; those in `data.params.missing` are read as such.
LIKE_MISSING = frozenset(("none", "nan", "na", "n/a", "#n/a", "#na", "null", "nil", "<na>", "nat", "?", ".", "#value!"))


def is_number(text: str) -> bool:
    """Return True if the text is a number in the notation that programs write."""
    return NUMBER.fullmatch(text) is not None


# Characters that mark thousands, and the decimal marks that can follow; spaces of all widths are equal.
MARKS = {",": (",", r"\."), ".": (".", ","), " ": (" \u00a0\u2009\u202f", "[.,]"), "'": ("'\u2019", "[.,]")}
GROUPED = {
    mark: re.compile(rf"[+-]?[1-9][0-9]{{0,2}}(?:[{marks}][0-9]{{3}})+(?:{decimal}[0-9]*)?")
    for mark, (marks, decimal) in MARKS.items()
}


@dataclass(frozen=True)
class Notation:
    """Settings for reading the texts of a table: texts for a missing value, and the marks in a number."""

    missing: frozenset[str] = frozenset()
    decimal: str = "."
    thousands: str | None = None

    def plain(self, text: str) -> str | None:
        """Return the number in the notation of programs; None if the text is not a number in this notation.

        Thousands are marked everywhere or nowhere: `1.234.567,5` and `1234567,5`, but not `1234.567,5`.
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
        """Return examples of numbers in this notation, for a message."""
        return "1234.5 or 1e+05".replace(".", self.decimal)


# Notations to suggest; of those that fit, `advice` chooses those with the fewest settings.
ADVISED = tuple(
    Notation(decimal=decimal, thousands=thousands)
    for thousands, decimal in ((None, ","), (",", "."), (" ", "."), ("'", "."), (".", ","), (" ", ","), ("'", ","))
)


def advice(texts: Sequence[str]) -> str:
    """Return the settings that read nearly all of the texts as numbers, for a message; empty if there are none.

    `1,234` can have a decimal comma or marked thousands: then both are named, each with the value it gives.
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

    A number with leading zeros is a code, and is not changed.
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
    """Return a form that is equal for names that differ only in case, spaces, leading zeros or Unicode form."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def other_notation(text: str, notation: Notation | None = None) -> str | None:
    """Return `a date or a time` or `a number in another notation` if the text looks like that; else None."""
    value = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").strip()
    if DATE.fullmatch(value):
        return "a date or a time"
    if (notation or Notation()).plain(text) is not None:
        return None
    if value.startswith("(") and value.endswith(")"):
        value = value[1:-1].strip()
    if "." in value or "," in value:  # `12.50-` is negative in accounting, but `40-` means 40 and more
        value = value.rstrip("-")
    for _ in range(2):  # a currency or a per cent sign on either side
        value = AROUND.sub("", value.strip().lstrip("+-").strip())
    return "a number in another notation" if CORE.fullmatch(value) else None


def common_unit(texts: Iterable[str]) -> str | None:
    """Return the unit if nearly all of the texts are numbers with the same unit, such as `0.50 kg`; else None."""
    units: dict[str, int] = {}
    total = 0
    for text in texts:
        total += 1
        if match := WITH_UNIT.fullmatch(text):
            units[match[1].strip()] = units.get(match[1].strip(), 0) + 1
    most = max(units, key=lambda unit: units[unit], default=None)
    return most if most is not None and units[most] >= NEARLY_ALL * total else None
