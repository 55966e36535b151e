"""Objects as HTML in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def titled(title: str, table: pandas.DataFrame, *notes: str) -> str:
    """Return a title, a table as pandas shows it, and notes below it."""
    shown = table.to_html(max_rows=60, border=0)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<b>{html.escape(title)}</b>{shown}{below}"
