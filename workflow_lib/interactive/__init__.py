"""Experiments in a notebook or a script: the same files, pipeline and results as on the command line.

experiment  an experiment: loaded, planned, run, looked at
planned     its runs before they are trained, with their cost
results     the runs with results, as data frames
trained     a run: its model, its data, its predictions
compared    runs or experiments side by side
grid        a sweep that is built in code

The working directory is the folder of the project, as for every command. Tables are `pandas.DataFrame`s. What is wrong
raises the errors of the package, with the message that the command would print.
"""

from workflow_lib.interactive.compared import ComparedRuns, compare
from workflow_lib.interactive.experiment import Experiment, load
from workflow_lib.interactive.grid import ParameterGrid, run_grid
from workflow_lib.interactive.planned import Plan
from workflow_lib.interactive.results import Results
from workflow_lib.interactive.trained import TrainedRun, open_run

__all__ = [
    "ComparedRuns",
    "Experiment",
    "ParameterGrid",
    "Plan",
    "Results",
    "TrainedRun",
    "compare",
    "load",
    "open_run",
    "run_grid",
]
