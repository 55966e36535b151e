"""A study is a chain of small files, and each suggestion is a function of the files before it.

Suggestion n depends on the results of trials 0 .. n - window and the parameters of the trials after those, not on
results that happen to be finished by then. So the suggestions do not depend on timing, and a lost file can be written
again with the same bytes. Optuna is used as a library of samplers, not as a shared database.
"""

from workflow_lib.tuning.pruning import pruner, thresholds
from workflow_lib.tuning.selection import best
from workflow_lib.tuning.storage import copy_study
from workflow_lib.tuning.study import importances, load_study
from workflow_lib.tuning.study_files import (
    Point,
    Result,
    RunReference,
    Suggestion,
    load_result,
    load_suggestion,
    result_path,
    suggestion_path,
)
from workflow_lib.tuning.suggestions import suggest
from workflow_lib.tuning.trials import result, trial, write_result

__all__ = [
    "Point",
    "Result",
    "RunReference",
    "Suggestion",
    "best",
    "copy_study",
    "importances",
    "load_result",
    "load_study",
    "load_suggestion",
    "pruner",
    "result",
    "result_path",
    "suggest",
    "suggestion_path",
    "thresholds",
    "trial",
    "write_result",
]
