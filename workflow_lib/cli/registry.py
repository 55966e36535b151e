"""The verb `registry`."""

from __future__ import annotations

from pathlib import Path

from workflow_lib.cli.options import Arguments, option
from workflow_lib.cli.user import VERBS
from workflow_lib.errors import UserError


@VERBS.add(
    "registry",
    "list registered models, or the versions of one and the decisions about them; promote a version by hand",
    option("name", nargs="?", metavar="NAME", help="name of a model (default: list all)"),
    option("--folder", type=Path, default=Path("registry"), metavar="FOLDER", help="the registry (default: registry)"),
    option("--promote", type=int, metavar="N", help="version that gets the alias"),
    option("--alias", default="champion", metavar="ALIAS", help="alias for --promote (default: champion)"),
    option("--reason", metavar="TEXT", help="why, for --promote; it is recorded"),
)
def _registry(arguments: Arguments) -> None:
    from workflow_lib import registry

    if arguments.promote is None:
        if arguments.reason is not None:
            raise UserError("--reason: it belongs to --promote N")
        print(registry.listing(arguments.folder, arguments.name))
        return
    if arguments.name is None or arguments.reason is None:
        raise UserError("--promote: also give the NAME of the model and --reason TEXT, which is recorded")
    print(registry.promote(arguments.folder, arguments.name, arguments.promote, arguments.alias, arguments.reason))
