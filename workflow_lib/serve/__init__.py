"""`everstep serve`: a page in the browser that shows the runs while they are trained. It only reads."""

from __future__ import annotations

import socket
from pathlib import Path

from workflow_lib.processes import user
from workflow_lib.serve.server import Server
from workflow_lib.serve.snapshot import Snapshots


def serve(experiment: str | None, port: int, work: Path, results: Path) -> None:
    """Serve the page of an experiment, or of all, until Ctrl-C; port 0 lets the system choose one.

    Raises ConfigError if the experiment is not planned, or the port cannot be used.
    """
    snapshots = Snapshots(experiment, work, results)
    snapshots.check()
    with Server(port, snapshots) as server:
        print(_beginning(server, experiment), flush=True)
        server.serve_forever()


def _beginning(server: Server, experiment: str | None) -> str:
    """Return what is printed first: the address, who can open it, and how to from another computer."""
    return "\n".join(
        [
            f"{experiment or 'all runs'}: {server.url}",
            "The address is a password: whoever has it can read the page. Only programs on this machine can connect.",
            "If your browser runs on another computer, type there first, with the name by which you log in:",
            f"  ssh -N -L {server.port}:127.0.0.1:{server.port} {user()}@{socket.gethostname()}",
            "Ctrl-C ends the page, and no training.",
        ]
    )
