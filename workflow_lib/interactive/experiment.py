"""An experiment in Python: loaded from a file or a mapping, planned, run by the same pipeline, and looked at."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import config, plan
from workflow_lib.arguments import PATH, check_type, path_of
from workflow_lib.config import compose, mapping
from workflow_lib.errors import ConfigError, Stopped
from workflow_lib.files import write_atomic
from workflow_lib.interactive import project
from workflow_lib.interactive.planned import Plan
from workflow_lib.interactive.results import Results
from workflow_lib.interactive.tables import frame
from workflow_lib.plan import imported
from workflow_lib.results import claims
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK
from workflow_lib.text import count

if TYPE_CHECKING:
    import pandas

WRITTEN = "Written from Python by workflow_lib, which may write it again; remove this line to edit the file by hand."


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Return the experiment of a file, or of a mapping with the content of one.

    Args:
        source: path of an experiment file; or a mapping such as `{"name": "mine", "training": {"epochs": 5}}`, which
            may contain arrays, paths and tuples, and `extends` with the path of a file to start from
        overrides: settings on top, by dotted name: `{"optimizer.lr": 0.01}`, as `--set` on the command line

    Raises:
        ConfigError: A mistake in the experiment; the message has all of them, one a line.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(f'overrides: {overrides!r}; allowed: a mapping such as {{"optimizer.lr": 0.01}}')
    assigned = mapping.assignments(overrides or {})
    if isinstance(source, Mapping):
        return Experiment(Path(), mapping.plain(source), assigned)
    return Experiment(path_of("load", source, "the path of an experiment file, or a mapping"), None, assigned)


class Experiment:
    """An experiment: one training, or a sweep and a study of it. `load` returns it."""

    def __init__(self, path: Path, values: dict[str, Any] | None, overrides: Sequence[str]) -> None:
        self._values, self._overrides, self._folder = values, overrides, Path.cwd()
        self._config = config.load([path if values is None else values], overrides)
        self._path = path if values is None else Path("config", f"{self._config.name}.yaml")
        imported.check(plan.base(self._config))

    @property
    def name(self) -> str:
        """The name of the experiment, and of its folder in `results/`."""
        return self._config.name

    @property
    def path(self) -> Path:
        """The experiment file; of a mapping the one that `save` and `run` write, `config/<name>.yaml`."""
        return self._path

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as in an experiment file, defaults included."""
        return self._config.model_dump(mode="json")

    def plan(self) -> Plan:
        """Return the runs of the experiment, without starting anything."""
        self._check()
        return Plan(self._config)

    def save(self) -> Path:
        """Write the experiment of a mapping to its file, for the pipeline and for `everstep`, and return the path.

        A file that was written from Python is replaced. Raises ConfigError for another one with other settings.
        The overrides of `load` are not in the file.
        """
        project.check(self._folder, self.name)
        if self._values is None:
            return self._path
        values = dict(self._values)
        if isinstance(base := values.get("extends"), str):
            values["extends"] = os.path.relpath(base, self._path.parent)
        text = mapping.text_of(values, WRITTEN)
        if self._path.exists() and not self._path.read_text(encoding="utf-8", errors="replace").startswith(
            f"# {WRITTEN}"
        ):
            if compose.read(self._path).values == compose.read_mapping(self._values).values:
                return self._path
            raise ConfigError(
                f"{self._path}: is another experiment file, which was not written from Python, and is not changed: "
                "give the experiment another name, or load the file"
            )
        self._path.parent.mkdir(exist_ok=True)
        write_atomic(self._path, text)
        return self._path

    def run(self, profile: str | Path = "local", arguments: Sequence[str | int | Path] = ()) -> Results:
        """Run the pipeline to its end, as `everstep run` does, and return the results.

        What is there already is not computed again. A line is printed for each event; a terminal and a notebook also
        show a view that changes in place. Ctrl-C, or an interrupt of the notebook's kernel, asks the trainings to save
        and stops them; a second one kills them. The same call resumes.

        Args:
            profile: `local`, `slurm`, or the folder of a profile
            arguments: more arguments of Snakemake, such as `["--cores", 2]`

        Raises:
            UserError: A mistake in a file or a setting.
            EverstepError: A job failed; the message says which one, and why.
            KeyboardInterrupt: The pipeline was stopped, by Ctrl-C or another signal; the trainings have saved.
        """
        from workflow_lib import live

        allowed = "`local`, `slurm`, or the folder of a profile"
        profile, more = str(path_of("profile", profile, allowed)), _texts(arguments)
        self._check()
        path = self.save()
        if config.load([path], self._overrides) != self._config:
            raise ConfigError(f"{path} has changed since it was loaded: load it again")
        command = live.snakemake(path, profile, self._overrides, more)
        typed = ["everstep", "run", str(path), "--profile", profile]
        typed += [word for given in self._overrides for word in ("--set", given)]
        try:
            live.run(command, [*typed, *(["--", *more] if more else [])])
        except Stopped as error:
            raise KeyboardInterrupt(str(error)) from None
        return self.results()

    def status(self) -> pandas.DataFrame:
        """Return the state of each run now, also during a training: a row for each run, and for each trial of a study.

        The columns are those of `everstep status --json`, with a column for each metric of the last validation.
        """
        self._check()
        rows = Plan(self._config).status()
        metrics = dict.fromkeys(name for row in rows for name in row["metrics"])
        table = [
            {
                **{name: row[name] for name in ("run", "state", "step", "steps", "epoch", "epochs", "samples_per_s")},
                **{name: row["metrics"].get(name) for name in metrics},
                "attempts": len(row["attempts"]),
                "used_s": row["account"]["used_s"],
                "why": row["why"],
            }
            for row in rows
        ]
        counts = ("step", "steps", "epochs", "attempts")
        return frame(table, whole=counts, numbers=("epoch", "samples_per_s", *metrics, "used_s"), index="run")

    def results(self) -> Results:
        """Return the results that there are now; runs without one are listed with the reason."""
        self._check()
        return Results(self._config, RESULTS / self.name, WORK)

    def _check(self) -> None:
        """Raise ConfigError if the results of the name belong to another experiment file, as `everstep plan` does."""
        project.check(self._folder, self.name)
        claims.check(RESULTS, self.name, claims.claim_of([self._path], self._overrides))

    def __repr__(self) -> str:
        return f"Experiment({', '.join(self._words())})"

    def _repr_html_(self) -> str:
        name, *words = map(html.escape, self._words())
        return f"<b>{name}</b>: {', '.join(words)}"

    def _words(self) -> list[str]:
        runs = plan.expand(self._config)
        study = [f"a study of {count(self._config.tune.trials, 'trial')}"] if self._config.tune else []
        used = [f"data {self._config.data.name}", f"model {self._config.model.name}"]
        return [self.name, count(len(runs), "run"), *study, *used, str(self._path), *self._overrides]


def _texts(arguments: Sequence[str | int | Path]) -> list[str]:
    """Return the arguments of Snakemake as texts."""
    allowed = 'a list of arguments of Snakemake, such as ["--cores", 2]'
    check_type("arguments", arguments, (list, tuple), allowed)
    for word in arguments:
        check_type("arguments", word, (*PATH, int, float), allowed)
    return [str(word) for word in arguments]
