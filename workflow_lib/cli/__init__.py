"""The command line. A verb is declared with its options; it unpacks its arguments, calls a package and prints.

Each verb imports its packages only when it is called, so that `--help` and `validate` stay fast.
"""

from workflow_lib.cli.entry import main

__all__ = ["main"]
