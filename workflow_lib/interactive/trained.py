"""A run with a result: its settings, metrics, curve, predictions, model and data."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_lib import plan
from workflow_lib.arguments import check_device, path_of
from workflow_lib.errors import ConfigError, UserError
from workflow_lib.interactive import project
from workflow_lib.interactive.shown import as_html
from workflow_lib.interactive.tables import CURVE, curve
from workflow_lib.plan import imported
from workflow_lib.results import layout as results_layout
from workflow_lib.results import provenance
from workflow_lib.results.layout import RESULTS
from workflow_lib.results.statements import Training, read_evaluation, read_training
from workflow_lib.store.layout import WORK
from workflow_lib.text import decimal, flatten, training_place

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import torch
    from torch import nn

    from workflow_lib.config.run import RunConfig
    from workflow_lib.data import Manifest, MappedSplit, Split

NUMBERED = ("row", "token")  # columns of predictions that name a sample by a number


def open_run(run: str | Path) -> TrainedRun:
    """Return a trained run by its id, the first digits of its digest, its folder in `results/` or its `train.json`.

    The name of an experiment stands for its best run.

    Raises UserError if there is no such run, or several, or if it diverged.
    """
    from workflow_lib.results.references import find_run

    allowed = "the id of a run, the first digits of its digest, its folder, or an experiment"
    return TrainedRun(find_run(str(path_of("run", run, allowed)), RESULTS))


class TrainedRun:
    """A run that is trained. `open_run` returns it, and so do `Results`."""

    def __init__(self, folder: Path) -> None:
        statement = read_training(folder / results_layout.TRAIN)
        if "state" in statement:
            raise UserError(f"{folder.name}: the training diverged: {statement['reason']}")
        self._folder, self._statement, self._project = folder, statement, Path.cwd()

    @property
    def name(self) -> str:
        """The name of the run: that of its folder in `results/`."""
        return self._folder.name

    @property
    def folder(self) -> Path:
        """The folder with its files: `model.safetensors`, `model.onnx`, `history.csv`, `predictions.csv`."""
        project.check(self._project, self.name)
        return self._folder

    @property
    def training(self) -> Training:
        """The statement in train.json: digests, best epoch, steps, seconds, attempts, environment."""
        return self._statement

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of the run by dotted name."""
        return flatten(self._config.model_dump(mode="json"))

    @cached_property
    def _config(self) -> RunConfig:
        project.check(self._project, self.name)
        return plan.load_run(self._statement["digest"], WORK)[0]

    @property
    def _data(self) -> Path:
        """The manifest of the data that the run was trained on."""
        return results_layout.data_manifest(self.folder.parents[1], plan.data_id(self._config))

    @cached_property
    def _manifest(self) -> Manifest:
        from workflow_lib.data import Manifest

        return Manifest.load(self._data)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by their numbers; empty if the task has none."""
        return self._manifest.classes

    @cached_property
    def changes(self) -> list[str]:
        """Lines on the code and the data, if they are others now than those that the run was trained with."""
        return list(provenance.changes(self._statement, self._config, self.folder, WORK))

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """The metrics on the test split, a row for each: `value`, and the bounds `low` and `high` of its interval.

        An undefined metric is NaN. Raises UserError if the run is not evaluated yet.
        """
        import pandas

        path = self.folder / results_layout.EVALUATION
        if not path.exists():
            raise UserError(f"{self.name} is not evaluated yet; run the pipeline again")
        found = read_evaluation(path)["metrics"]
        rows = [{name: metric.get(name) for name in ("value", "low", "high")} for metric in found.values()]
        return pandas.DataFrame(rows, index=pandas.Index([*found], name="metric"), dtype=float)

    @cached_property
    def history(self) -> pandas.DataFrame:
        """The learning curve: a row for each validation."""
        from workflow_lib.results.read_runs import read_history

        return curve(read_history(self.folder / results_layout.HISTORY), CURVE)

    @cached_property
    def predictions(self) -> pandas.DataFrame:
        """The predictions for the test split, a row for each sample, which its first columns name.

        Raises UserError if the run is not evaluated yet, or if its model predicts nothing from data.
        """
        import pandas

        path = self.folder / results_layout.PREDICTIONS
        if not path.exists() or not path.stat().st_size:
            raise UserError(f"{path}: no predictions: the run is not evaluated yet, or its model gives none")
        # as text first: a file may be called NA or 001, and numbers keep every bit
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        columns = [*table]
        names = set(columns[: columns.index("sample")] if "sample" in columns else columns) - {*NUMBERED}
        return table.assign(**{name: _numbers(table[name]) for name in columns if name not in names})

    def model(self, device: str | torch.device = "cpu") -> nn.Module:
        """Return the model with its trained weights, whose digest is verified, in evaluation mode.

        Its inputs are those that `data` gives, and not those of `predict`: normalised. Raises UserError if the code of
        the model has changed since the training, and ConfigError if this machine does not have the device.
        """
        import torch

        place = _device(device)
        from workflow_lib.evaluation import load_trained

        imported.check(self._config)
        with torch.random.fork_rng(devices=[]):  # building a model draws weights
            ref = self._statement["digest"]
            trained = load_trained(ref, self._data, WORK, self.folder / results_layout.MODEL)
        return trained.network.to(place)

    def data(self, split: str = "test", device: str | torch.device = "cpu") -> Split | MappedSplit:
        """Return a split of the data, as the training read it: `train`, `val` or `test`.

        `len(split)` is its number of samples; `split.batch(slice(0, 64))` and `split.batch([3, 17])` return inputs and
        targets as tensors. Targets of a regression are standardised. If the prepared data is missing, it is prepared
        again. Raises DataError if it is damaged, or if its source has changed.
        """
        from workflow_lib.data import SPLITS, ensure, load_split

        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: allowed: {', '.join(SPLITS)}")
        place = _device(device)
        imported.check(self._config)
        return load_split(ensure(self._manifest, WORK), split, WORK, str(place), in_memory=self._config.data.in_memory)

    def predict(
        self, data: str | Path | pandas.DataFrame | np.ndarray, *, device: str = "auto", batch_size: int = 256
    ) -> pandas.DataFrame:
        """Return predictions for new data, as `workflow_lib.predict` does."""
        from workflow_lib.prediction import predict

        return predict(self.folder, data, device=device, batch_size=batch_size)

    def __repr__(self) -> str:
        return "\n".join([f"TrainedRun({self.name}: {self._best()})", *self.changes])

    def _best(self) -> str:
        best = self._statement["best"]
        return f"{best['metric']} {decimal(best['value'])} at {training_place(best['epoch'], best['step'])}"

    def _repr_html_(self) -> str:
        from workflow_lib.comparison.text import value_of

        title = f"{self.name}: {self._best()}"
        if not (self.folder / results_layout.EVALUATION).exists():
            return as_html(title, *self.changes)
        found = read_evaluation(self.folder / results_layout.EVALUATION)["metrics"]
        rows = [["metric", "value"], *([name, value_of(metric)] for name, metric in found.items())]
        return as_html(title, rows, *self.changes)


def _device(device: str | torch.device) -> torch.device:
    """Return the device of this name. Raises ConfigError if this machine does not have it."""
    from workflow_lib.runtime.device import resolve

    name = str(device)
    check_device("device", name)
    return resolve(name)


def _numbers(texts: pandas.Series[str]) -> pandas.Series[Any]:
    """Return the numbers of a column, NaN for an empty cell; the texts if they are no numbers."""
    with suppress(ValueError):
        return texts.astype("int64")
    with suppress(ValueError):
        return texts.mask(texts == "", "nan").astype("float64")
    return texts
