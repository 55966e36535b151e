"""Access to the page and to files: the token in the address, the Host header, and paths inside the project."""

from __future__ import annotations

import hmac
import re
import secrets
from pathlib import Path
from urllib.parse import unquote

LOOPBACK = "127.0.0.1"
# The names of a machine for itself. A page of an attacker whose own name points here (DNS rebinding) sends that name.
# The port may differ, since a tunnel can begin at any.
LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
ROOTS = ("results", "logs")
FROZEN = re.compile(r"work/runs/[0-9a-f]{32}/config\.json")  # settings of a run, which the report links


def new_token() -> str:
    """Return a random token of 256 bits."""
    return secrets.token_urlsafe(32)


def is_local(host: str | None) -> bool:
    """Return True if the Host header is a name of this machine for itself."""
    return host is not None and LOCAL_HOST.fullmatch(host) is not None


def is_token(given: str, token: str) -> bool:
    """Compare in a time that does not depend on what is equal."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def find_file(project: Path, address: str) -> Path | None:
    """Return the file of an address below the project; None if it does not exist or is none that the page links.

    Links that lead out of `results/` or `logs/` are not followed; these folders may be links themselves.
    """
    parts = [unquote(part, errors="replace") for part in address.split("/")]
    if any(not part or part.startswith(".") or re.search(r"[/\\\0]", part) for part in parts):
        return None
    if parts[0] not in ROOTS and not FROZEN.fullmatch("/".join(parts)):
        return None
    try:
        path = project.joinpath(*parts).resolve(strict=True)
        is_inside = path.is_relative_to((project / parts[0]).resolve(strict=True))
    except (OSError, ValueError, RuntimeError):
        return None
    return path if is_inside and path.is_file() else None
