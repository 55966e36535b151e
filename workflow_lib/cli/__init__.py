"""The command line: a verb and its options stand together; it unpacks its arguments, calls a package and prints.

A verb imports what it needs when it is called, so that `--help` and `validate` stay fast.
"""

from workflow_lib.cli.entry import main

__all__ = ["main"]
