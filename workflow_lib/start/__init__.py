"""The beginning of a project: its files, and an experiment file that is guessed from the data."""

from workflow_lib.start.guess import Guess, guess
from workflow_lib.start.project import new_project
from workflow_lib.start.written import DIGITS, first_experiment

__all__ = ["DIGITS", "Guess", "first_experiment", "guess", "new_project"]
