"""`everstep prove-resume`: test on the user's experiment that a resume is exact."""

from workflow_lib.prove.proof import Verdict, prove

__all__ = ["Verdict", "prove"]
