"""The page of a report: its text, and the document that Chromium makes of it."""

from __future__ import annotations

import base64
import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="no Chromium here")


def unpacked(page: str, name: str) -> str:
    """Return the text of a compressed element of the page."""
    (element,) = re.findall(f'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    return gzip.decompress(base64.b64decode(element)).decode()


def own_part(page: str) -> str:
    """Return the page without Plotly."""
    assert unpacked(page, "plotly") == get_plotlyjs()
    return re.sub('(<script type="text/plain" id="plotly">)[^<]*', r"\1", page)


# The title of the page becomes the number of its figures that have a line or a point.
COUNT_DRAWN = """
setInterval(() => {
  const all = [...document.querySelectorAll('.plot[role=img]')];
  const drawn = all.filter((place) => place.querySelector('path.js-line, path.point, .point path'));
  document.title = `${drawn.length} of ${all.length} drawn`;
}, 50);
"""


def in_browser(page: Path, profile: Path, script: str = "") -> str:
    """Return the document as Chromium leaves it, with a script at its end."""
    copy = profile / "page.html"
    profile.mkdir()
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile / 'chromium'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout
