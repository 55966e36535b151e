"""Fixtures of a run in the store."""

from tests.support.stored import _finished, _killed, finished, killed, prepared, warm

__all__ = ["warm", "prepared", "_killed", "killed", "_finished", "finished"]
