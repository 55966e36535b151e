"""The report of an experiment: one HTML file that shows its results."""

from workflow_lib.report.page import (
    MOST_CURVES,
    MOST_POINTS,
    _confused,
    _errors,
    _headings,
    _matrix,
    _predictions,
    _scatter,
    _script_json,
    _spent,
    report,
    report_unfinished,
    summary,
)

__all__ = [
    "MOST_CURVES",
    "MOST_POINTS",
    "_confused",
    "_errors",
    "_headings",
    "_matrix",
    "_predictions",
    "_scatter",
    "_script_json",
    "_spent",
    "report",
    "report_unfinished",
    "summary",
]
