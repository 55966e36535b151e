"""Objects as text, and as HTML in a notebook: a title, tables whose first column names the rows, and notes."""

from __future__ import annotations

import html
from collections.abc import Sequence

from workflow_lib.text import aligned, count

MOST = 60  # rows of a table that is shown
Rows = Sequence[Sequence[str]]  # headings first


def as_text(title: str, rows: Rows, notes: Sequence[str] = ()) -> str:
    """Return a title, a table and notes as lines."""
    return "\n".join([title, "", *aligned([*rows[: MOST + 1]]), *_more(rows), *(["", *notes] if notes else [])])


def as_html(title: str, *parts: Rows | str) -> str:
    """Return a title, then tables and notes, in the style that the notebook gives to tables, light or dark."""
    return "".join(
        [f"<b>{html.escape(title)}</b>"]
        + [f"<p>{html.escape(part)}</p>" if isinstance(part, str) else _table(part) for part in parts]
    )


def _table(rows: Rows) -> str:
    (name, *headings), *lines = ([html.escape(cell) for cell in row] for row in rows[: MOST + 1])
    head = _row_head(name) + "".join(f"<th>{cell}</th>" for cell in headings)
    body = "".join(f"<tr>{_row_head(first)}{''.join(map(_cell, cells))}</tr>" for first, *cells in lines)
    more = "".join(f"<p>{line}</p>" for line in _more(rows))
    return (
        f'<table border="0" class="dataframe"><thead><tr style="text-align: right">{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{more}"
    )


def _row_head(text: str) -> str:
    return f'<th style="white-space: nowrap; text-align: left">{text}</th>'


def _cell(text: str) -> str:
    return f'<td style="white-space: nowrap">{text}</td>' if len(text) < MOST else f"<td>{text}</td>"


def _more(rows: Rows) -> list[str]:
    left = len(rows) - 1 - MOST
    return [f"... and {count(left, 'more row')}"] if left > 0 else []
