"""Texts of a table that probably mean a missing value, beside those that are read as such by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workflow_lib.datasets._notation import LIKE_MISSING, Notation

# in any column: those that pandas reads as missing, without None, which is often a category
ANYWHERE = frozenset(
    ("n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NULL", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
)
# in a column whose other values are numbers; in any case
AMONG_NUMBERS = LIKE_MISSING | {
    "-", "--", "---", "\N{EN DASH}", "\N{EM DASH}", "*", "..", "\\n", "missing", "unknown", "not available",
}  # fmt: skip


def missing_texts(columns: Iterable[Sequence[str]], notation: Notation) -> set[str]:
    """Return the texts that mean a missing value, of columns that are given by their different texts."""
    found: set[str] = set()
    for texts in columns:
        found |= ANYWHERE & set(texts)
        others = [text for text in texts if notation.plain(text) is None]
        if len(others) < len(texts) and all(text.casefold() in AMONG_NUMBERS or text in ANYWHERE for text in others):
            found |= set(others)
    return found
