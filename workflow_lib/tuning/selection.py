"""The best trial of a study, and the run that is trained in full with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import plan
from workflow_lib.config.measures import maximized
from workflow_lib.config.metrics import gain
from workflow_lib.errors import EverstepError
from workflow_lib.tuning.study_files import Result, check_study, load_result, reference, result_path, tune_of, write

if TYPE_CHECKING:
    from workflow_lib.config import Experiment


def best(experiment: Experiment, tune_dir: Path, work: Path, output: Path) -> dict[str, Any]:
    """Write the best complete trial of the study to the output, the first of equal ones, and freeze its full run.

    The full run has the best parameters without `tune.set`, which is for trials only. If that section is empty, the
    full run is the trial's own, and nothing is trained again. Raises EverstepError if no trial is complete.
    """
    tune, study = tune_of(experiment), plan.study_digest(experiment)
    results = [load_result(result_path(tune_dir, i)) for i in range(tune.trials)]
    check_study(study, results, tune_dir)
    chosen = _best(results, plan.study_metric(experiment), study, maximized(experiment.training))
    run = plan.apply(experiment, chosen["params"], f"trial {chosen['number']}")
    plan.freeze(run, work)
    statement = {
        "study": study,
        "number": chosen["number"],
        "metric": plan.study_metric(experiment),
        "value": chosen["value"],
        "epoch": chosen["epoch"],
        **({"step": chosen["step"]} if "step" in chosen else {}),
        "params": chosen["params"],
        "trials": len(results),
        "run": reference(experiment, chosen["params"], run),
    }
    write(output, statement)
    return statement


def _best(results: Sequence[Result], metric: str, study: str, maximized: Sequence[str]) -> Result:
    complete = [trial for trial in results if trial["state"] == "complete"]
    if not complete:
        first = results[0]
        raise EverstepError(
            f"study {study}: none of its {len(results)} trials was trained in full; "
            f"trial {first['number']} {first['state']}: {first['reason']}"
        )
    return max(complete, key=lambda trial: gain(metric, trial["value"], maximized))
