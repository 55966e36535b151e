"""The run that a user names: by its id, by its files, or by the experiment whose best run it is."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

from workflow_lib import config
from workflow_lib.errors import ConfigError, UserError
from workflow_lib.results import layout
from workflow_lib.results.statements import read_training
from workflow_lib.text import joined, nearest

logger = logging.getLogger(__name__)


def find_run(ref: str, results: Path) -> Path:
    """Return the folder of a run from its path, the path of a file in it, its id, or the first digits of its digest.

    The name, file or results of an experiment stand for its best run, which is logged.
    """
    folder, experiment = find(ref, results)
    if experiment is not None:
        logger.info("%s: the best run of this experiment is %s", ref, folder.name)
    return folder


def find(ref: str, results: Path) -> tuple[Path, Path | None]:
    """Return the folder of a run as `find_run` does, and the results of the experiment if that was named."""
    if (experiment := _experiment(ref, results)) is None:
        return _run(ref, results), None
    return layout.run_dir(experiment, _best(ref, experiment)), experiment


def rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table of the report, best first; none if it does not exist."""
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _experiment(ref: str, results: Path) -> Path | None:
    if Path(ref).suffix in (".yaml", ".yml"):
        return results / config.load([Path(ref)]).name
    places = (Path(ref), results / ref)
    tables = (layout.RUNS_TABLE, layout.PLAN)
    return next((place for place in places if any((place / name).exists() for name in tables)), None)


def _best(ref: str, experiment: Path) -> str:
    table = experiment / layout.RUNS_TABLE
    best = next((row["name"] for row in rows(table) if not row.get("state")), None)
    if best is None:
        raise UserError(f"{ref}: {table} has no finished run yet; run the pipeline")
    return best


def _run(ref: str, results: Path) -> Path:
    path = Path(ref)
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / layout.TRAIN).is_file():
        return folder
    if path.exists():
        raise UserError(f"{ref}: has no {layout.TRAIN}; give the folder of a trained run, or its id")
    trained = {found.parent: read_training(found)["digest"] for found in layout.all_trainings(results)}
    named = [folder for folder in trained if folder.name == ref]
    digits = re.search(r"(?:^|-)([0-9a-f]{4,32})$", ref)
    alike = [folder for folder, digest in trained.items() if digits and digest.startswith(digits[1])]
    chosen = named or alike
    if len({trained[folder] for folder in chosen}) > 1:
        listing = ", ".join(map(str, chosen[:5]))
        raise ConfigError(f"{ref}: {len(chosen)} runs in {results} have this name ({listing}); give the folder of one")
    if not chosen:
        names = [path.parent.name for path in layout.all_plans(results)]
        said = f"{ref}: no trained run in {results} has this id{nearest(ref, [*names, *(run.name for run in trained)])}"
        more = (
            f"allowed: the id of a run or the first digits of its digest, its folder in {results}, its {layout.TRAIN}, "
            f"or an experiment: {', '.join(names) or 'none has been planned'}"
        )
        raise ConfigError(joined(said, more))
    return chosen[0]
