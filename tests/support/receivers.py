"""Servers on the loopback interface that receive messages: HTTP, and mail with TLS and a login."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme


@dataclass
class Web:
    """An HTTP server: the requests that it got, and the statuses that it answers with, 200 after the last one."""

    url: str
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)  # it answers once this is set

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.requests]


@contextmanager
def web_server(*statuses: int, is_silent: bool = False) -> Iterator[Web]:
    """Run an HTTP server until the block ends; a silent one reads the requests and does not answer until then."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            web.requests.append((self.path, dict(self.headers), body))
            web.release.wait()
            try:
                self.send_response(web.statuses.pop(0) if web.statuses else 200)
                self.send_header("Location", f"{web.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:  # the sender has given up
                return

        do_GET = do_POST  # noqa: N815 (the name that http.server asks for)

        def log_message(self, *arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web = Web(f"http://127.0.0.1:{server.server_port}", statuses=list(statuses))
    if not is_silent:
        web.release.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Post:
    """A mail server: what it got, and who logged in."""

    port: int = 0
    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)  # receivers
    authority: trustme.CA = field(default_factory=trustme.CA)  # signs the certificate

    def trust(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process, as any OpenSSL, trust the certificate of the server."""
        certificate = folder / "authority.pem"
        self.authority.cert_pem.write_to_path(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


@contextmanager
def mail_server(
    *, password: bytes | None = None, is_tls: bool = False, expired: datetime | None = None
) -> Iterator[Post]:
    """Run a mail server until the block ends; with a password, it wants STARTTLS, or TLS at once, and this password.

    Its certificate may have expired. Its answer to QUIT is an error.
    """
    from aiosmtpd.smtp import SMTP, AuthResult

    post = Post()

    class Receiver:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
            mail = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(mail, EmailMessage)
            post.mails.append((envelope.rcpt_tos, mail))
            return "250 accepted"

        async def handle_RCPT(  # noqa: N802 (aiosmtpd's name)
            self, server: Any, session: Any, envelope: Any, address: str, options: Any
        ) -> str:
            if address in post.rejected:
                return "550 unknown"
            envelope.rcpt_tos.append(address)
            return "250 known"

        async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
            return "421 no time for that"

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: Any, data: Any) -> AuthResult:
        post.logins.append((data.login, data.password))
        return AuthResult(success=data.password == password, handled=False)

    def protocol() -> SMTP:
        if password is None:
            return SMTP(Receiver(), hostname="localhost", loop=loop)
        return SMTP(
            Receiver(),
            hostname="localhost",
            loop=loop,
            tls_context=None if is_tls else context,
            require_starttls=not is_tls,
            auth_required=not is_tls,  # aiosmtpd takes a connection that began with TLS for an open one, and warns
            auth_require_tls=not is_tls,
            authenticator=authenticate,
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    begin = None if expired is None else expired - timedelta(days=1)
    post.authority.issue_cert("localhost", not_before=begin, not_after=expired).configure_cert(context)
    loop = asyncio.new_event_loop()
    wrapped = context if is_tls else None
    server = loop.run_until_complete(loop.create_server(protocol, "127.0.0.1", 0, ssl=wrapped))
    post.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield post
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
