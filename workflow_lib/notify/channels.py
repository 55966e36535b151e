"""The ways to tell a message. Secrets come from the environment, and no error quotes one.

A channel is a function that takes the message and a number of seconds, and returns once the receiver has accepted it;
after these seconds at the latest it raises NotSent, with a reason that contains no address.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import EmailMessage
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from workflow_lib import __version__
from workflow_lib.errors import EverstepError
from workflow_lib.notify.message import Message

if TYPE_CHECKING:
    from workflow_lib.config.notify import Mail, Notify

Channel = Callable[[Message, float], None]
NAMES_THE_HOST = (62, 64)  # OpenSSL's errors of a certificate for another host or address, whose texts quote it


class NotSent(EverstepError):
    """The receiver has not accepted the message, as far as is known."""


class PartlySent(NotSent):
    """Some receivers of a mail have accepted it, and would get it twice if it were sent again."""


def channels(settings: Notify, environment: Mapping[str, str]) -> dict[str, Channel]:
    """Return the channels that the settings ask for, by name."""
    found: dict[str, Channel] = {}
    if settings.webhook_env is not None:
        url = environment[settings.webhook_env]
        found["webhook"] = lambda message, seconds: _post(url, message.as_json(), message.key, seconds)
    if settings.slack_env is not None:
        slack = environment[settings.slack_env]
        found["slack"] = lambda message, seconds: _post(slack, {"text": _for_slack(message.text)}, message.key, seconds)
    if settings.command_env is not None:
        variable = settings.command_env
        found["command"] = lambda message, seconds: _run(variable, message, environment, seconds)
    if settings.mail is not None:
        mail = settings.mail
        found["mail"] = lambda message, seconds: _mail(mail, message, environment, seconds)
    return {name: _bounded(channel) for name, channel in found.items()}


def _bounded(channel: Channel) -> Channel:
    """Return the channel with a limit on its time: timeouts of sockets bound a single read, not all of them."""

    def send(message: Message, seconds: float) -> None:
        outcome: list[NotSent | None] = []

        def call() -> None:
            try:
                channel(message, seconds)
            except NotSent as error:
                outcome.append(error)
            except Exception as error:
                outcome.append(NotSent(reason_of(error)))
            else:
                outcome.append(None)

        thread = threading.Thread(target=call, name="notify", daemon=True)
        thread.start()
        thread.join(seconds)
        error = outcome[0] if outcome else NotSent(f"there was no answer within {seconds:.3g} s")
        if error is not None:
            raise error

    return send


def reason_of(error: BaseException) -> str:
    """Return why a message was not sent, without the text of the error if that may contain an address."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"the server answered with status {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return reason_of(error.reason)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return str(error)  # names the extension of SMTP that the server lacks
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the server answered with status {error.smtp_code}"
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code not in NAMES_THE_HOST:
        return f"TLS failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, http.client.InvalidURL | UnicodeError):
        return "the URL is not valid"
    if isinstance(error, http.client.HTTPException):
        return f"the answer is not HTTP ({type(error).__name__})"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirection an error: the message is for the host that the user named."""

    def redirect_request(self, *arguments: Any, **settings: Any) -> None:
        return None


def _post(url: str, content: Mapping[str, Any], key: str, seconds: float) -> None:
    if not url.startswith(("https://", "http://")):
        raise NotSent("the URL does not begin with https:// or http://")
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        "User-Agent": f"everstep/{__version__}",
    }
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds):
        pass


def _for_slack(text: str) -> str:
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, escaped)
    return text


def _run(variable: str, message: Message, environment: Mapping[str, str], seconds: float) -> None:
    """Run the command that a variable holds, in a session of its own, so that its children can be killed with it.

    Its output is dropped. The shell reads the variable, since its arguments are visible to all users of the machine.
    """
    told = {"EVERSTEP_EVENT": message.event, "EVERSTEP_KEY": message.key, "EVERSTEP_TEXT": message.text}
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'eval "${variable}"'],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, **told},
        start_new_session=True,
    )
    try:
        # ended here before `_bounded` gives up, so that no command is left
        process.communicate(json.dumps(message.as_json()).encode(), timeout=0.9 * seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise NotSent(f"the command did not end within {0.9 * seconds:.3g} s and was killed") from None
    if process.returncode:
        raise NotSent(f"the command ended with exit code {process.returncode}")


def _mail(settings: Mail, message: Message, environment: Mapping[str, str], seconds: float) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = message.title, settings.sender, ", ".join(settings.to)
    mail["Date"], mail["Message-ID"] = formatdate(), f"<{message.key}@everstep>"
    mail.set_content(message.text)
    server = _server(settings, seconds)
    try:
        if settings.security == "starttls":
            server.starttls(context=ssl.create_default_context())
        if settings.user_env is not None and settings.password_env is not None:
            server.login(environment[settings.user_env], environment[settings.password_env])
        if rejected := server.send_message(mail):
            raise PartlySent(f"the server rejected {len(rejected)} of {len(settings.to)} receivers")
    finally:
        # without the answer, which is no part of the delivery: a mail that was accepted would be sent again without it
        with suppress(OSError):
            server.putcmd("quit")
        server.close()


def _server(settings: Mail, seconds: float) -> smtplib.SMTP:
    name = socket.gethostname()  # the default asks a name server, which may take long
    if settings.security == "tls":
        secure = ssl.create_default_context()
        return smtplib.SMTP_SSL(settings.host, settings.port, local_hostname=name, timeout=seconds, context=secure)
    return smtplib.SMTP(settings.host, settings.port, local_hostname=name, timeout=seconds)
