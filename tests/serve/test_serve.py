"""The live page over a real socket: who may read it, and what it says about a real training."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import Project
from tests.support.stored import _finished, _killed, finished, killed, prepared, start, warm
from tests.support.warm import until
from workflow_lib import cli
from workflow_lib.errors import ConfigError
from workflow_lib.serve import access, server, snapshot
from workflow_lib.serve.server import Server
from workflow_lib.serve.snapshot import Snapshots

__all__ = ["_finished", "_killed", "finished", "killed", "prepared", "warm"]

HOST = {"Host": "localhost:8000"}  # as through a tunnel that begins at another port


@contextmanager
def served(project: Path, monkeypatch: pytest.MonkeyPatch, experiment: str | None = None) -> Iterator[Server]:
    """Serve the project's page."""
    monkeypatch.chdir(project)
    with Server(0, Snapshots(experiment, Path("work"), Path("results"))) as page:
        thread = threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield page
        finally:
            page.shutdown()
            thread.join()


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The page of a project with a few files, and a secret beside it."""
    project = tmp_path / "project"
    for name in (
        "results/t/report.html",
        "logs/train/t/a.log",
        "work/runs/x.json",
        ".snakemake/x",
        "config/t.yaml",
        "results/.aside",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (tmp_path / "secret.log").write_text("secret")
    (project / "logs" / "out.log").symlink_to(tmp_path / "secret.log")
    with served(project, monkeypatch) as page:
        yield page


def ask(
    page: Server, rest: str, method: str = "GET", *, token: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and content of the answer to an address below the token."""
    with closing(http.client.HTTPConnection(*page.server_address[:2], timeout=30)) as connection:
        address = f"/{page.token if token is None else token}/{rest}"
        connection.request(method, address, headers={**HOST, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def asked_json(page: Server, rest: str) -> Any:
    page.snapshots._valid_until = 0.0
    status, _, content = ask(page, rest)
    assert status == 200, content
    return json.loads(content)


def test_browsers_do_not_wait_for_a_disk_that_hangs(page: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get the content as it was, and one thread waits for the disk, however often they ask."""
    before = asked_json(page, "state")
    monkeypatch.setattr(snapshot, "PATIENCE_S", 0.01)
    plan = page.project / "results" / "hangs" / "plan.json"
    plan.parent.mkdir()
    os.mkfifo(plan)  # like a file on a server that does not answer
    waiting = set()
    for _ in range(3):
        assert asked_json(page, "state") == before
        assert asked_json(page, "curves?since=0")["version"] == before["curves"]
        waiting.add(page.snapshots._running)
    (running,) = waiting
    with plan.open("wb") as file:
        plan.unlink()
        file.write(b'{"runs": [], "study": null}')
    assert running is not None
    after = running.result(timeout=60)
    assert page.snapshots._content is after
    assert page.snapshots._running is None


@pytest.mark.parametrize("token", ["", "wrong", "é", "x" * 43])
def test_without_the_token_nothing_is_told(page: Server, token: str) -> None:
    for rest in ("", "state", "plotly.js", "files/results/t/report.html", "nothing"):
        with closing(socket.create_connection(page.server_address[:2])) as connection:
            connection.sendall(f"GET /{token}/{rest} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 403 "), rest
        assert answer.partition(b"\r\n\r\n")[2].startswith(b"403 Forbidden: use the whole address"), rest


def test_tokens_are_random_and_compared_in_constant_time(page: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({access.new_token() for _ in range(9)}) == 9
    assert len(page.token) >= 43  # 256 bits
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return False

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    assert ask(page, "state")[0] == 403
    assert compared == [(page.token.encode(), page.token.encode())]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:9", 200),
        ("[::1]:9", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("localhost:80@evil.example", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(page: Server, host: str, status: int) -> None:
    assert ask(page, "state", Host=host)[0] == status


def test_only_the_loopback_interface_listens(page: Server) -> None:
    """An address of 127.0.0.0/8 is another address of the same machine, as that of a network card is."""
    assert page.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", page.port), timeout=5).close()


@pytest.mark.parametrize(
    "address",
    [
        "results/../config/t.yaml",
        "results/%2e%2e/config/t.yaml",
        "results/..%2fconfig/t.yaml",
        "results/t/..%5c..%5cconfig",
        "/etc/passwd",
        "%2fetc/passwd",
        "../../../../etc/passwd",
        "logs/out.log",  # a link that leads out
        "logs/train",  # a folder
        "logs/a%00.log",
        "logs/%ff.log",
        "config/t.yaml",
        "work/runs/x.json",
        ".snakemake/x",
        "results/.aside",
        "results/t/none.csv",
        "",
    ],
)
def test_no_other_file_is_read(page: Server, address: str) -> None:
    status, _, content = ask(page, f"files/{address}")
    assert (status, content) == (404, b"404 Not Found: there is no such file\n")


def test_results_may_lie_on_another_disk(page: Server, tmp_path: Path) -> None:
    (tmp_path / "project" / "results").rename(tmp_path / "scratch")
    (tmp_path / "project" / "results").symlink_to(tmp_path / "scratch")
    status, headers, content = ask(page, "files/results/t/report.html")
    assert (status, content) == (200, b"results/t/report.html")
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in headers["Content-Security-Policy"]


def test_of_a_huge_log_a_browser_gets_the_end_and_a_line_that_says_so(
    page: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_OF_LOG", 10)
    (page.project / "logs" / "huge.log").write_bytes(b"<script>\xff\0 the end\n")
    status, headers, content = ask(page, "files/logs/huge.log")
    assert (status, content) == (200, b"[the first 9 bytes are not shown here]\n\0 the end\n")
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == (server.TEXT, "nosniff")
    assert ask(page, "files/logs/huge.log", "HEAD")[1]["Content-Length"] == str(len(content))
    (page.project / "results" / "t" / "huge.csv").write_bytes(b"1,2,3,4,5,6,7,8\n")
    assert len(ask(page, "files/results/t/huge.csv")[2]) == 16


def test_requests_that_no_browser_sends_are_answered_without_a_traceback(
    page: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for since in ("9" * 5000, "-1", "x", "%C2%B2"):
        assert json.loads(ask(page, f"curves?since={since}")[2])["keys"] == []
    with closing(socket.create_connection(page.server_address[:2])) as connection:
        connection.sendall(f"GET /{page.token}/state HTTP/1.0\r\nHost: localhost\r\nHost: evil\r\n\r\n".encode())
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 421 ")
    assert caplog.text == ""


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_the_page_can_only_be_read(page: Server, method: str) -> None:
    status, headers, _ = ask(page, "state", method)
    assert (status, headers["Allow"], headers["Connection"]) == (405, "GET, HEAD", "close")


def test_answers_have_the_headers_of_a_private_page(page: Server) -> None:
    for rest in ("", "state", "serve.js", "serve.css", "files/logs/train/t/a.log", "nothing"):
        _, headers, _ = ask(page, rest)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert not any(name.startswith("Access-Control") for name in headers)
        assert "Set-Cookie" not in headers
        assert "Python" not in headers["Server"]
    assert "script-src 'self';" in ask(page, "")[1]["Content-Security-Policy"]
    html = (server.TEMPLATES / "page.html").read_text()
    assert "://" not in html  # nothing is loaded from another place


def test_an_answer_without_its_content_has_the_same_headers(page: Server) -> None:
    for rest in ("", "serve.js", "files/logs/train/t/a.log", "nothing"):
        _, with_content, content = ask(page, rest)
        _, headers, _ = ask(page, rest, "HEAD")
        assert headers["Content-Length"] == str(len(content))
        assert with_content.keys() == headers.keys()
        with closing(socket.create_connection(page.server_address[:2])) as connection:
            connection.sendall(f"HEAD /{page.token}/{rest} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            assert connection.makefile("rb").read().partition(b"\r\n\r\n")[2] == b""


def test_a_browser_gets_compressed_content(page: Server) -> None:
    _, headers, content = ask(page, "serve.js", Accept_Encoding="gzip, br")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(content) == ask(page, "serve.js")[2] == (server.TEMPLATES / "serve.js").read_bytes()


def test_too_many_connections_are_closed_and_later_ones_answered(page: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    page._free = threading.BoundedSemaphore(2)
    silent = [socket.create_connection(page.server_address[:2]) for _ in range(2)]
    until(lambda: page._free._value == 0, "both connections")
    with closing(socket.create_connection(page.server_address[:2])) as third:
        assert third.recv(1) == b""
    for connection in silent:
        connection.close()
    until(lambda: page._free._value == 2, "their end")
    assert ask(page, "state")[0] == 200


def test_a_port_that_is_taken_is_a_mistake_with_one_message(page: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", str(page.port)]) == 2
    shown = capsys.readouterr()
    assert f"--port {page.port}: cannot be used (Address already in use); name another" in shown.err
    assert len(shown.err.splitlines()) == 1
    assert page.token not in shown.out + shown.err
    with pytest.raises(ConfigError, match="--port 70000: allowed: 1 to 65535"):
        Server(70000, page.snapshots)
    assert cli.main(["serve", "nope"]) == 2
    assert "nope: no planned experiment" in capsys.readouterr().err


def test_a_new_server_gets_the_port_of_one_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path, monkeypatch) as page:
        assert ask(page, "", "POST")[0] == 405  # the server ends the connection, whose port then stays in use a minute
    with Server(page.port, page.snapshots) as again:
        assert again.port == page.port


def test_the_page_tells_how_to_copy_the_study(page: Server) -> None:
    folder = page.project / "results" / "t"
    owner = {"files": ["my config/t.yaml"], "set": ["seed=7", "training.epochs=2"]}
    (folder / "experiment.json").write_text(json.dumps(owner))
    command = page.snapshots._study_command(folder)
    assert command == ("everstep study 'my config/t.yaml' --set 'seed=7 training.epochs=2' --to sqlite:///study.db")


def test_a_diverged_training_leaves_nothing_to_evaluate(page: Server) -> None:
    folder = page.project / "results" / "diverged"
    for name, training in {"a-1": {}, "b-2": {"state": "diverged"}}.items():
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "train.json").write_text(json.dumps(training))
        (folder / "runs" / name / "evaluation.json").write_text(json.dumps(training))
    runs = [{"id": name, "digest": name, "data_id": "d"} for name in ("a-1", "b-2", "c-3")]
    (folder / "plan.json").write_text(json.dumps({"runs": runs, "study": None}))
    phases = page.snapshots._phases("diverged")["phases"]
    assert phases[1:4] == [["trainings", 1, 3, 1], ["evaluations", 1, 2, 0], ["exports", 0, 2, 0]]


def test_the_page_follows_a_training(prepared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its plan to its result, also when that changes, and when it disappears."""
    project = tmp_path / "followed"
    shutil.copytree(prepared.folder, project, symlinks=True)
    run = Project(project, prepared.warm, prepared.run, prepared.data)
    with served(project, monkeypatch, "t") as page:
        (new,) = asked_json(page, "state")["runs"]
        assert (new["run"], new["state"], new["links"]) == (run.run, "new", [])
        assert asked_json(page, "curves?since=0")["keys"] == []

        pid = start(run)
        running = until(lambda: (seen := asked_json(page, "state")["runs"][0])["loss"] and seen, "a loss")
        assert (running["state"], running["unit"]) == ("running", "epoch")
        curve = until(lambda: asked_json(page, "curves?since=0")["changed"], "a curve")[0]
        assert curve["name"] == run.run
        assert len(curve["steps"]["step"]) == len(curve["steps"]["train_loss"]) > 0
        os.kill(pid, 15)
        run.warm.wait(pid)
        (stopped,) = asked_json(page, "state")["runs"]
        assert (stopped["state"], 0 < stopped["share"] < 1) == ("stopped", True)

        run.finish()
        state = asked_json(page, "state")
        (done,) = state["runs"]
        assert (done["state"], done["share"], state["counts"]) == ("trained", 1.0, {"trained": 1})
        curves = asked_json(page, "curves?since=0")
        (curve,) = curves["changed"]
        assert curve["epoch"] == [1, 2, 3]
        assert curve["steps"] == {"step": curve["step"], "train_loss": curve["train_loss"]}
        assert all(isinstance(loss, float) for loss in curve["val_loss"])
        assert asked_json(page, f"curves?since={curves['version']}")["changed"] == []

        folder = project / "results" / "t" / "runs" / run.run
        folder.mkdir(parents=True, exist_ok=True)
        for value in (0.5, 0.75):
            metrics = {"accuracy": {"value": value, "low": 0.25, "high": None}, "val_streak": {"value": None}}
            (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics, "value": value}))
            (done,) = asked_json(page, "state")["runs"]
            assert done["tests"][0][:2] == ["accuracy", f"{value:.4f}"]
            assert done["tests"][1] == ["streak", "undefined", ""]
        (label, address) = done["links"][-1]
        assert label == "evaluation"
        assert json.loads(ask(page, address)[2])["value"] == 0.75

        shutil.rmtree(project / "results")
        shutil.rmtree(project / "work" / "runs")
        gone = asked_json(page, "state")
        assert (gone["runs"], gone["experiments"]) == ([], [])
        assert "t: no planned experiment" in gone["problem"]
        assert asked_json(page, "curves?since=0")["keys"] == []
