"""Each channel delivers to a real receiver, fails within its time, and never quotes a secret."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.receivers import mail_server, web_server
from workflow_lib.config.notify import Mail, Notify
from workflow_lib.notify.channels import NotSent, channels
from workflow_lib.notify.message import Message
from workflow_lib.notify.outbox import Outbox

SECRET = "s3cret"
MESSAGE = Message("k" * 32, "end", "tiny", "Everstep: tiny ended", "größer <&> ☃\nline 2", "2026", "host", "/folder")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def send(environment: dict[str, str], **settings: Any) -> None:
    seconds = settings.pop("seconds", 30.0)
    (channel,) = channels(Notify(**settings), environment).values()
    channel(MESSAGE, seconds)


def reason(environment: dict[str, str], **settings: Any) -> str:
    """Return why the message was not sent."""
    with pytest.raises(NotSent) as error:
        send(environment, **settings)
    assert SECRET not in str(error.value)
    return str(error.value)


def mail(port: int, **settings: Any) -> dict[str, Any]:
    return {"host": "localhost", "port": port, "sender": "a@x.org", "to": ["b@x.org", "c@x.org"], **settings}


def test_a_webhook_gets_json_with_the_key_and_slack_gets_escaped_text() -> None:
    with web_server(204) as web:
        send({"HOOK": f"{web.url}/{SECRET}"}, webhook_env="HOOK")
        send({"SLACK": f"{web.url}/{SECRET}"}, slack_env="SLACK")
    (path, headers, body), (_, _, slack) = web.requests
    assert path == f"/{SECRET}"
    assert json.loads(body) == MESSAGE.as_json()
    assert (headers["Idempotency-Key"], headers["Content-Type"]) == (MESSAGE.key, "application/json")
    assert json.loads(slack) == {"text": "größer &lt;&amp;&gt; ☃\nline 2"}


def test_a_webhook_that_fails_says_why_without_its_address() -> None:
    with web_server(500, 302) as web:
        assert reason({"A": f"{web.url}/{SECRET}"}, webhook_env="A") == "the server answered with status 500"
        assert reason({"A": f"{web.url}/{SECRET}"}, webhook_env="A") == "the server answered with status 302"
        assert len(web.requests) == 2  # the redirection was not followed
    assert reason({"A": f"{web.url}/{SECRET}"}, webhook_env="A") == os.strerror(111)
    assert "https://" in reason({"A": f"file:///{SECRET}"}, webhook_env="A")
    assert reason({"A": f"http://{SECRET} x/"}, webhook_env="A") == "the URL is not valid"


def test_a_try_ends_after_its_time() -> None:
    began = time.monotonic()
    with web_server(is_silent=True) as web:
        assert "in time" in (found := reason({"A": web.url}, webhook_env="A", seconds=0.3)) or "within" in found
    assert "within" in reason({"A": f"sleep 600; echo {SECRET}"}, command_env="A", seconds=0.3)
    assert time.monotonic() - began < 300


def test_a_command_gets_the_message_and_its_children_are_killed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "TELL": 'cat > message; printf "%s" "$EVERSTEP_TEXT$OWN" > text', "OWN": SECRET}
    send(environment, command_env="TELL")
    assert json.loads(Path("message").read_text()) == MESSAGE.as_json()
    assert Path("text").read_text() == MESSAGE.text + SECRET
    send({**environment, "TELL": "exit 0"}, command_env="TELL")  # does not read its input
    send({**environment, "TELL": f"cat /proc/$$/cmdline > seen; : {SECRET}"}, command_env="TELL")
    assert SECRET not in Path("seen").read_text(), "all users see the arguments of a process"
    assert reason({**environment, "TELL": f"exit 3 # {SECRET}"}, command_env="TELL") == (
        "the command ended with exit code 3"
    )
    communicate = subprocess.Popen.communicate

    def time_is_over(process: Any, content: bytes | None = None, timeout: float | None = None) -> Any:
        """Let the time of the command be over once its child runs, however slow the machine is."""
        if timeout is None:
            return communicate(process)
        while not (Path("child").exists() and Path("child").read_text().endswith("\n")):
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", time_is_over)
    late = {**environment, "TELL": "sleep 600 & echo $! > child; wait"}
    assert reason(late, command_env="TELL", seconds=200.0) == "the command did not end within 180 s and was killed"
    child = int(Path("child").read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline, "the child of the command goes on"
        time.sleep(0.01)


def test_mail_is_delivered_to_a_real_server() -> None:
    with mail_server() as post:
        send({}, mail=mail(post.port, security="none"))
        assert "STARTTLS" in reason({}, mail=mail(post.port))  # nothing is sent without it
    ((receivers, got),) = post.mails
    assert receivers == ["b@x.org", "c@x.org"]
    assert (got["Subject"], got["Message-ID"]) == (MESSAGE.title, f"<{MESSAGE.key}@everstep>")
    assert got.get_content().rstrip("\r\n").splitlines() == MESSAGE.text.splitlines()


def test_a_mail_that_some_receivers_have_got_is_not_sent_again(tmp_path: Path) -> None:
    with mail_server() as post:
        post.rejected.add("c@x.org")
        found = channels(Notify(mail=Mail(**mail(post.port, security="none"))), {})
        box = Outbox(tmp_path / "tiny", found, 3, 30.0, pause=lambda seconds: None)
        told = [box.tell(MESSAGE), box.resume()]
    assert told == [["mail: the message about end was not sent: the server rejected 1 of 2 receivers"], []]
    assert [receivers for receivers, _ in post.mails] == [["b@x.org"]]


def test_mail_is_sent_over_tls_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"user_env": "WHO", "password_env": "WORD", "security": "tls"}
    environment = {"WHO": "me", "WORD": SECRET}
    with mail_server(password=SECRET.encode(), is_tls=True) as post:
        assert "unable to get local issuer certificate" in reason(environment, mail=mail(post.port, **login))
        post.trust(tmp_path, monkeypatch)
        send(environment, mail=mail(post.port, **login))
    assert post.logins == [(b"me", SECRET.encode())]
    assert len(post.mails) == 1


def test_an_expired_certificate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(password=b"", is_tls=True, expired=datetime(2020, 1, 1)) as post:
        post.trust(tmp_path, monkeypatch)
        assert reason({}, mail=mail(post.port, security="tls")) == "TLS failed: certificate has expired"


def test_mail_logs_in_only_over_a_verified_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"user_env": "WHO", "password_env": "WORD"}
    environment = {"WHO": "me", "WORD": SECRET}
    with mail_server(password=SECRET.encode()) as post:
        assert "unable to get local issuer certificate" in reason(environment, mail=mail(post.port, **login))
        assert post.logins == []
        post.trust(tmp_path, monkeypatch)
        send(environment, mail=mail(post.port, **login))
        assert post.logins == [(b"me", SECRET.encode())]
        assert len(post.mails) == 1
        wrong = {**environment, "WORD": f"{SECRET}x"}
        assert reason(wrong, mail=mail(post.port, **login)) == "the server answered with status 535"
        assert len(post.mails) == 1
