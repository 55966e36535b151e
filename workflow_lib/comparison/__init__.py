"""Runs and experiments side by side: settings that differ, metrics, their differences, and learning curves.

subjects   finds the runs, and reads their results
table      what differs between them, and by how much
text       the comparison for the terminal
page       the comparison as an HTML page
"""

from workflow_lib.comparison.page import write_page
from workflow_lib.comparison.subjects import find
from workflow_lib.comparison.table import Comparison, compare
from workflow_lib.comparison.text import shown

__all__ = ["Comparison", "compare", "find", "shown", "write_page"]
