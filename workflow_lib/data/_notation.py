"""The grammar of numbers in a table, and texts that are numbers or dates in another notation.

A number is written as programs write it: ASCII digits, a decimal point, an exponent. Anything else is a text, and a
column of texts that a person would read as numbers is rejected rather than taken for categories.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
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


def other_notation(text: str) -> str | None:
    """Return what the text is to a person, a number or a date, if it is one that is not a number here."""
    value = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").strip()
    if DATE.fullmatch(value):
        return "a date or a time"
    if is_number(text):
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
