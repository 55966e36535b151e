"""Runs cells in a kernel: `python -m tests.support.notebook FOLDER`, a process of its own for Jupyter's sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.repository import ROOT

PRIVATE = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


@dataclass(frozen=True)
class Cell:
    """The output of a cell: text, with values as a notebook shows them, and the views that replaced each other."""

    text: str
    views: list[str]


class Client(NotebookClient):  # type: ignore[misc]
    """Keeps what each cell showed in the output that changed in place."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.views: dict[int, list[str]] = {}

    def process_message(self, message: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if message["msg_type"] == "update_display_data":
            self.views.setdefault(cell_index, []).append(message["content"]["data"]["text/html"])
        return super().process_message(message, cell, cell_index)


def run_cells(cells: list[str], folder: Path, home: Path, timeout_s: float) -> list[Cell]:
    """Return what the cells show in a kernel in the folder; `home` gets its settings, instead of the user's."""
    variables = {name: str(home / name) for name in PRIVATE} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.notebook", str(folder)],
        env={**os.environ, **variables, "PYTHONWARNINGS": "error::DeprecationWarning:__main__"},
        input=json.dumps([timeout_s, cells]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Cell(*shown) for shown in json.loads(done.stdout.splitlines()[-1])]


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return str(output.data.get("text/html", output.data.get("text/plain", "")))


def _main() -> None:
    timeout_s, cells = json.load(sys.stdin)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:  # a short path, and no ports that others may take
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        client = Client(notebook, km=kernel, timeout=timeout_s, resources={"metadata": {"path": sys.argv[1]}})
        client.execute()
    shown = [("".join(map(_text, cell.outputs)), client.views.get(at, [])) for at, cell in enumerate(notebook.cells)]
    print(json.dumps(shown))


if __name__ == "__main__":
    _main()
