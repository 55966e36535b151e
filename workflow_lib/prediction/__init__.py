"""Predictions of a trained run, or of an exported model, for data without targets.

models    the two kinds of model, each of which turns stored inputs into outputs
masks     PNG files of predicted masks
tables    CSV and Parquet files, written a batch at a time

The samples are read by `open_inputs` of the data set, with everything that training learned: categories, missing
values, normalisation, image size, vocabulary. An exported model needs no file of the project.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib import plugins, tasks
from workflow_lib.arguments import PATH, check_device, check_type, path_of
from workflow_lib.data.inputs import Inputs, Named, checked, name_of, open_array
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation.computing import judged
from workflow_lib.prediction.masks import folder_of, write_masks
from workflow_lib.prediction.models import Model, open_model
from workflow_lib.prediction.tables import Rows, check_output, open_table
from workflow_lib.results.layout import RESULTS
from workflow_lib.store.layout import WORK
from workflow_lib.text import count

if TYPE_CHECKING:
    import numpy as np
    import pandas

    from workflow_lib.data import Manifest

__all__ = ["predict", "write_predictions"]

log = logging.getLogger(__name__)
BATCH_SIZE = 256


def predict(
    run: str | Path,
    data: str | Path | pandas.DataFrame | np.ndarray,
    *,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
) -> pandas.DataFrame:
    """Return the predictions of a run or an exported model for a file, a folder, a table or an array, a row a sample.

    Args:
        run: id of a run or its first digits, its folder in `results/`, its `train.json`, an experiment (its best run),
            or a `model.onnx`. All but the last need the project as the working directory
        data: data of the kind that the model was trained on; targets are not needed, and not used. A DataFrame is read
            as a Parquet file with its columns; the predictions have its index. An array `[n, ...]` is read as a .npy
            file: it has the type and shape of the inputs that the data set reads, before they are normalised
        device: auto, cpu, cuda or cuda:N
        batch_size: largest number of samples that are computed at once

    Raises:
        UserError: The run, the data or the device cannot be used; the message says why.
    """
    import numpy as np
    import pandas

    check_type("run", run, PATH, "the id of a run, its folder, an experiment, or a model.onnx")
    check_type("batch_size", batch_size, Integral, "a whole number, at least 1")
    if isinstance(data, pandas.DataFrame | np.ndarray):
        with _as_file(data) as path:
            predictions = predict(run, path, device=device, batch_size=batch_size)
        predictions = predictions.drop(columns="file", errors="ignore")  # that of the temporary file
        return predictions.set_axis(data.index, axis="index") if isinstance(data, pandas.DataFrame) else predictions
    parts: list[pandas.DataFrame] = []

    def collect(rows: Iterable[Rows]) -> None:
        parts[:] = [pandas.DataFrame(dict(columns)) for columns in rows]

    allowed = "a file, a folder, a pandas.DataFrame or a NumPy array"
    _predict(str(run), path_of("data", data, allowed), device, batch_size, collect)
    return pandas.concat(parts, ignore_index=True)


@contextmanager
def _as_file(data: pandas.DataFrame | np.ndarray) -> Iterator[Path]:
    """Yield a temporary Parquet or .npy file of the data. A UserError has the data, not the file, as the place."""
    import numpy as np

    is_array = isinstance(data, np.ndarray)
    name, kind = ("the array", "a .npy file") if is_array else ("the DataFrame", "Parquet")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("array.npy" if is_array else "table.parquet")
        try:
            if isinstance(data, np.ndarray):
                np.save(path, data, allow_pickle=False)
            else:
                data.to_parquet(path, index=False)
        except (ImportError, ValueError, TypeError) as error:  # of pyarrow too: ArrowInvalid is a ValueError
            raise UserError(f"{name} cannot be written as {kind}: {error}") from error
        try:
            yield path
        except UserError as error:
            raise type(error)(str(error).replace(str(path), name)) from error


def write_predictions(
    run: str, data: Path, output: Path, *, device: str = "auto", batch_size: int = BATCH_SIZE
) -> None:
    """Write the predictions as `predict` returns them, batch by batch; the file appears when it is complete.

    If the task has masks, they are written before the table, whose column `mask` names the file of each sample.
    """
    check_output(output, data)

    def write(rows: Iterable[Rows]) -> None:
        with open_table(output) as table:
            for columns in rows:
                table.add(columns)

    samples = _predict(run, data, device, batch_size, write, folder_of(output))
    log.info("%s: %s", output, count(samples, "sample"))


def _predict(
    run: str,
    data: Path,
    device: str,
    batch_size: int,
    use: Callable[[Iterable[Rows]], None],
    folder: Path | None = None,
) -> int:
    """Give the predictions to a function, batch by batch; return the number of samples."""
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: allowed: 1 and more")
    check_device("--device", device)
    if not data.is_file() and not data.is_dir():
        raise UserError(f"{data}: there is no such file or folder (a pipe is not read: it can be read only once)")
    samples = 0

    def counted(rows: Iterable[Rows]) -> Iterator[Rows]:
        nonlocal samples
        for columns in rows:
            samples += len(next(iter(columns.values())))
            yield columns

    with open_model(run, device, WORK, RESULTS) as model:

        def whole() -> None:
            nonlocal samples
            samples = 0
            with closing(_open(model.manifest, data)) as inputs:
                size = model.batch_size(batch_size)
                batches = _with_progress(checked(inputs, size, data, model.manifest), inputs)
                use(counted(_rows(model, batches, data, folder)))

        judged(whole)
    return samples


def _open(manifest: Manifest, path: Path) -> Inputs:
    """Return the samples in a file or folder, by `open_inputs` of the data set that the model was trained on."""
    name = manifest.data["name"]
    try:
        module = plugins.load("data", name)
    except plugins.PluginError:
        if path.suffix.lower() != ".npy":  # an exported model can be where the user's data set is not
            raise
        return open_array(path, manifest)
    if (open_inputs := getattr(module, "open_inputs", None)) is None:
        return open_array(path, manifest)
    with plugins.user_code_errors(f"data set `{name}`: open_inputs()"):
        found: Inputs = open_inputs(module.Params.model_validate(manifest.data["params"]), path, manifest)
        return found


def _rows(model: Model, batches: Iterable[Named], data: Path, folder: Path | None) -> Iterator[Rows]:
    """Yield the columns of each batch: those that name the samples, then those of the task; write masks to a folder."""
    import numpy as np

    manifest, task = model.manifest, tasks.load(model.manifest.task)
    for names, inputs in batches:
        outputs, targets = model.outputs(inputs)
        bad = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
        if bad.any():
            raise EverstepError(f"{data}: {name_of(names, int(bad.argmax()))}: the model gives no finite number for it")
        columns = task.predicted(outputs, targets, manifest)
        if folder is not None and task.masks is not None:
            columns = {"mask": write_masks(folder, names, task.masks(outputs)), **columns}
        yield {**names, **columns}


def _with_progress(batches: Iterator[Named], inputs: Inputs) -> Iterator[Named]:
    """Yield the batches; show a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("samples", total=inputs.samples)
        for names, given in batches:
            yield names, given
            progress.advance(bar, len(given))
