"""The report of an experiment: an HTML page, a table of runs, and a summary for the terminal."""

from workflow_lib.report.page import write, write_incomplete
from workflow_lib.report.terminal import result, summary

__all__ = ["result", "summary", "write", "write_incomplete"]
