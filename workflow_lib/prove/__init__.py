"""Proof."""

from workflow_lib.prove.proof import Verdict, prove

__all__ = ["Verdict", "prove"]
