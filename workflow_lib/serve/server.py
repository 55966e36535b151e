"""The server: it listens on the loopback interface, and answers GET and HEAD of addresses with the token."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from workflow_lib.errors import ConfigError
from workflow_lib.serve import access
from workflow_lib.serve.access import LOOPBACK
from workflow_lib.serve.snapshot import Snapshots

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
IDLE_S = 15.0  # after which a silent connection is closed
MOST_CONNECTIONS = 64  # at once: other users can connect too, but not use up the memory of a login node
LARGEST_PORT = 65535
MOST_OF_LOG = 1 << 22  # bytes of a log that a browser gets: its end; a tab with gigabytes of text would hang
MOST_DIGITS = 18  # of a number in an address

# Plotly writes style attributes; scripts come from this server only.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report has its scripts inside. In a sandbox it has an origin of its own, so that it cannot read other addresses.
REPORT_POLICY = (
    "sandbox allow-scripts allow-popups allow-downloads; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILE_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
TEXT = "text/plain; charset=utf-8"
TEXTS = (".json", ".csv", ".log", ".txt", ".md", ".yaml", ".tsv", ".jsonl")  # shown by the browser, as text
SCRIPT, STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"


class Server(ThreadingHTTPServer):
    """Serves the page at `url`, each connection in a thread. Raises ConfigError if the port cannot be used."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, snapshots: Snapshots) -> None:
        if not 0 <= port <= LARGEST_PORT:
            raise ConfigError(f"--port {port}: allowed: 1 to {LARGEST_PORT}, or 0 for a free one")
        self.snapshots, self.token, self.project = snapshots, access.new_token(), Path.cwd()
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot be used ({error.strerror}); name another, or leave it out for a free one"
            ) from None

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        return f"http://{LOOPBACK}:{self.port}/{self.token}/"

    def server_bind(self) -> None:
        """Bind without looking up the name of the address, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may linger
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = LOOPBACK, self.port

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, or close the connection if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and count the connection until its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser may close its connections at any time."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of a connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server_version, sys_version = "everstep", ""
    command: str | None = None  # type: ignore[assignment]  # there is none in a request that cannot be read

    def do_GET(self) -> None:
        """Answer the address; only the text of the status is told to those who have no token."""
        if int(self.headers.get("Content-Length") or 0) or self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # the content is not read, and must not pass for the next request
        address = urlsplit(self.path)
        first, slash, rest = address.path.removeprefix("/").partition("/")
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not access.is_local(hosts[0]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "the page has another name: 127.0.0.1 or localhost")
        elif not access.is_token(first, self.server.token):
            self.send_error(HTTPStatus.FORBIDDEN, "use the whole address that `everstep serve` has printed")
        elif not slash:
            self.send_error(HTTPStatus.NOT_FOUND, "the address ends with a slash")
        else:
            try:
                self._answer_address(rest, parse_qs(address.query))
            except (ConnectionError, TimeoutError):
                self.close_connection = True
            except Exception:
                logger.exception("the page cannot be shown")
                self.close_connection = True
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the terminal of `everstep serve` shows the reason")

    do_HEAD = do_GET  # noqa: N815 (names that http.server looks up)

    def _reject(self) -> None:
        self.close_connection = True  # the content is not read
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "the page can only be read")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _reject  # noqa: N815

    def _answer_address(self, rest: str, query: dict[str, list[str]]) -> None:
        if rest == "":
            self._answer((TEMPLATES / "page.html").read_bytes(), "text/html; charset=utf-8", PAGE_POLICY)
        elif rest == "state":
            self._answer_json(self.server.snapshots.state())
        elif rest == "curves":
            since = query.get("since", ["0"])[0]
            is_number = since.isdecimal() and len(since) <= MOST_DIGITS
            self._answer_json(self.server.snapshots.curves(int(since) if is_number else 0))
        elif rest in ASSETS:
            content, kind = asset(rest)
            self._answer(content, kind, FILE_POLICY, is_compressed=True, is_constant=True)
        elif rest.startswith("files/"):
            path = access.find_file(self.server.project, rest.removeprefix("files/"))
            self._send_file(path) if path else self.send_error(HTTPStatus.NOT_FOUND, "there is no such file")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such address")

    def _answer_json(self, value: Any) -> None:
        self._answer(json.dumps(value, allow_nan=False).encode(), "application/json", FILE_POLICY)

    def _answer(
        self,
        content: bytes,
        kind: str,
        policy: str,
        *,
        status: int = HTTPStatus.OK,
        is_compressed: bool = False,
        is_constant: bool = False,
    ) -> None:
        """Send the content, compressed if the browser can read that."""
        can_read = "gzip" in self.headers.get("Accept-Encoding", "") if self.command else False
        if can_read and not is_compressed:
            content = gzip.compress(content, compresslevel=4)
        elif is_compressed and not can_read:
            content = gzip.decompress(content)
        encoding = {"Content-Encoding": "gzip"} if can_read else {}
        self._send_headers(status, kind, policy, len(content), {**encoding, "Vary": "Accept-Encoding"}, is_constant)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_file(self, path: Path) -> None:
        is_report, is_text = path.suffix == ".html", path.suffix in TEXTS
        kind = "text/html; charset=utf-8" if is_report else TEXT if is_text else "application/octet-stream"
        with path.open("rb") as file:
            left = size = path.stat().st_size  # a log that grows meanwhile is cut there
            notice = b""
            if path.suffix == ".log" and size > MOST_OF_LOG:
                left = MOST_OF_LOG
                file.seek(size - left)
                notice = f"[the first {size - left:,} bytes are not shown here]\n".encode()
            policy = REPORT_POLICY if is_report else FILE_POLICY
            self._send_headers(HTTPStatus.OK, kind, policy, len(notice) + left, {}, False)
            if self.command != "HEAD":
                self.wfile.write(notice)
            while self.command != "HEAD" and left and (block := file.read(min(left, 1 << 16))):
                self.wfile.write(block)
                left -= len(block)
            self.close_connection |= left > 0  # it was cut meanwhile

    def _send_headers(
        self, status: int, kind: str, policy: str, size: int, others: dict[str, str], is_constant: bool
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(size),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",  # the address is a password
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "private, max-age=86400" if is_constant else "no-store",
            **others,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with a line of text."""
        status = HTTPStatus(code)
        others = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        content = f"{status.value} {status.phrase}: {message or status.description}\n".encode()
        self._send_headers(status, TEXT, FILE_POLICY, len(content), others, False)
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: addresses contain the token."""


# scripts and style sheets, with their content: that of the report, and of the page itself
ASSETS = ("plotly.js", "figures.js", "traces.js", "serve.js", "report.css", "serve.css")


@cache
def asset(name: str) -> tuple[bytes, str]:
    """Return the compressed content of an asset, and its type."""
    from workflow_lib.report import page

    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        text = get_plotlyjs()
    elif (TEMPLATES / name).exists():
        text = (TEMPLATES / name).read_text(encoding="utf-8")
    else:
        text = page.asset(name)
    return gzip.compress(text.encode(), mtime=0), SCRIPT if name.endswith(".js") else STYLE
