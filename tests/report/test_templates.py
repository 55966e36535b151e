"""Laws of the pages that need no browser: nothing on them can be wider than a narrow window, except what scrolls."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from workflow_lib.report import page
from workflow_lib.serve import server

PAGES = sorted([*page.TEMPLATES.glob("*.html"), *server.TEMPLATES.glob("*.html")])
STYLES = [page.TEMPLATES / "report.css", server.TEMPLATES / "serve.css"]
ALONE = {"br", "hr", "img", "input", "link", "meta", "wbr"}  # elements without an end
MOST_REM = 20.0  # 320 pixels, the width of a small telephone
JINJA = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)


class Outline(HTMLParser):
    """Collects the tables of a page that are in no scrolling element, and the scrolling elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._open: list[bool] = []  # of each open element: if it scrolls
        self.scrolling: list[dict[str, str | None]] = []
        self.free: list[str] = []
        self.feed(JINJA.sub("", text))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what begins."""
        found = dict(attrs)
        scrolls = "scroll" in (found.get("class") or "").split()
        if tag == "table" and not any(self._open):
            self.free.append(self.get_starttag_text() or "")
        if scrolls:
            self.scrolling.append(found)
        if tag not in ALONE:
            self._open.append(scrolls)

    def handle_endtag(self, tag: str) -> None:
        """Note what ends."""
        self._open.pop()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_table_is_in_a_place_that_scrolls_and_that_keys_reach(path: Path) -> None:
    outline = Outline(path.read_text(encoding="utf-8"))
    assert outline.free == []
    for place in outline.scrolling:
        assert (place.get("tabindex"), place.get("role"), "aria-label" in place) == ("0", "region", True), place


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.stem)
def test_no_width_is_that_of_a_large_screen(path: Path) -> None:
    style = re.sub(r"min\(100%,[^)]*\)", "", path.read_text(encoding="utf-8"))  # gives way
    widths = re.findall(r"[{;\s](?:min-)?width: ([\d.]+)(rem|px|em)", style)
    assert len(widths) > 5
    assert [width for width in widths if float(width[0]) / (16 if width[1] == "px" else 1) > MOST_REM] == []
