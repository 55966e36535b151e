"""A copy of a study in an Optuna storage, for programs such as optuna-dashboard. The pipeline never reads it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from workflow_lib.errors import ConfigError

if TYPE_CHECKING:
    import optuna

MARK, NUMBER = "everstep", "everstep:trial"  # attributes of a copied study, and of its trials


def copy_study(study: optuna.Study, metric: str, storage: str) -> int:
    """Add the trials that the storage (a URL of SQLAlchemy) does not hold yet, and return their number.

    The copy has the study's name, and its values the name of the metric. Raises ConfigError if the storage cannot be
    written, or holds another study of this name.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        copy = optuna.create_study(
            storage=storage, study_name=study.study_name, direction=study.direction, load_if_exists=True
        )
        if copy.trials and MARK not in copy.user_attrs:
            raise ConfigError(f"--to: there is a study {study.study_name} that is not a copy: name another storage")
        copy.set_user_attr(MARK, study.study_name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            copy.set_metric_names([metric])
        there = {trial.user_attrs.get(NUMBER) for trial in copy.trials}
        new = [trial for trial in study.get_trials(deepcopy=True) if trial.user_attrs[NUMBER] not in there]
        for trial in new:
            copy.add_trial(trial)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, OSError, ValueError) as error:
        # the text of SQLAlchemy's errors may contain the URL with its password
        reason = str(getattr(error, "orig", None) or error).splitlines()[0].replace(storage, "the storage")
        raise ConfigError(
            f"--to: {reason}; for a file, write sqlite:///study.db (three slashes, or four before an absolute path)"
        ) from None
    return len(new)
