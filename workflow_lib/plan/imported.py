"""The user's code as this process imported it: a process that lives long, such as a notebook's, does not see edits."""

from __future__ import annotations

import sys
from pathlib import Path

from workflow_lib import plugins
from workflow_lib.config.run import RunConfig
from workflow_lib.errors import ConfigError
from workflow_lib.plan import user_code
from workflow_lib.plugins import source_digest

_seen: dict[str, str] = {}  # digest of the code of each module when it was looked at first


def check(run: RunConfig) -> None:
    """Raise ConfigError if a module of the user's that the run needs was edited since this process looked at it first.

    The jobs of the pipeline would run the edited code, and this process the one before.
    """
    data = plugins.code(plugins.load("data", run.data.name))
    for code in (data, *user_code.of(run).values()):
        for name, text in code.texts.items():
            module = sys.modules.get(name)
            file = getattr(module, "__file__", None)
            if file is None or name.startswith("workflow_lib."):
                continue
            _check_place(name, Path(file))
            digest = source_digest.of_text(text.encode())
            if _seen.setdefault(name, digest) != digest:
                raise ConfigError(
                    f"{file} has changed since this Python imported it: restart the notebook's kernel, or start the "
                    "script again"
                )


def _check_place(name: str, file: Path) -> None:
    """Raise ConfigError if the module came from another project that this process worked in before."""
    stem = Path.cwd().joinpath(*name.split("."))
    for own in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
        if own.is_file() and source_digest.INSTALLED.isdisjoint(file.parts) and not own.samefile(file):
            raise ConfigError(
                f"this Python imported `{name}` from {file}, and the jobs of this project would import {own}: restart "
                "the notebook's kernel, or start another script"
            )
