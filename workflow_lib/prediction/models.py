"""The models that predict: a run in results/, whose digests are verified, and an exported model."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from workflow_lib import plan, tasks
from workflow_lib.data import Manifest
from workflow_lib.data.normalisation import Normalisation
from workflow_lib.errors import UserError
from workflow_lib.evaluation import generated, load_trained
from workflow_lib.evaluation.computing import device_of
from workflow_lib.export import raw
from workflow_lib.export.metadata import manifest_of
from workflow_lib.files import file_digest
from workflow_lib.plan import imported
from workflow_lib.results import layout as results_layout
from workflow_lib.results.references import find_run
from workflow_lib.results.statements import read_export, read_training

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

PREDICTS_NOTHING = (
    "{ref}: its model takes inputs of its own training step, such as noise, and predicts nothing from data; compute "
    "its outputs with onnxruntime from model.onnx"
)


class Model(ABC):
    """A model with the manifest of its data."""

    manifest: Manifest

    @abstractmethod
    def outputs(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs for inputs as they are stored, and the targets that the inputs contain (language)."""

    def batch_size(self, largest: int) -> int:
        """Return the number of samples to compute at once, at most `largest`: outputs of a language model are large."""
        at_most = tasks.load(self.manifest.task).onnx.at_most
        return largest if at_most is None else at_most(self.manifest.spec, largest)


@contextmanager
def open_model(ref: str, device: str, work: Path, results: Path) -> Iterator[Model]:
    """Yield the model of a run or of a .onnx file. Raises UserError if there is none, or if it cannot be trusted."""
    if ref.endswith(".onnx"):
        exported = Exported(Path(ref), device)
        if exported.manifest.task == generated.NAME:
            raise UserError(PREDICTS_NOTHING.format(ref=ref))
        yield exported
        return
    folder = find_run(ref, results)
    statement = read_training(folder / results_layout.TRAIN)
    config, digest = plan.load_run(statement["digest"], work)
    imported.check(config)
    data = results_layout.data_manifest(folder.parents[1], plan.data_id(config))
    trained = load_trained(digest, data, work, folder / results_layout.MODEL)
    if trained.examples is not None:
        raise UserError(PREDICTS_NOTHING.format(ref=ref))
    with device_of(device, "--device") as where:
        yield Trained(trained.network, trained.manifest, where)


@final
class Trained(Model):
    """A trained network."""

    def __init__(self, network: nn.Module, manifest: Manifest, device: torch.device) -> None:
        self.manifest, self._device, self._onnx = manifest, device, tasks.load(manifest.task).onnx
        self._network = self._onnx.wrap(network, manifest).to(device).eval()
        self._normalisation = Normalisation(manifest, device)

    def outputs(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs for inputs as they are stored, and the targets that the inputs contain (language)."""
        import torch

        normal = self._normalisation(_tensor(stored).to(self._device))
        inputs, targets = self._onnx.pairs(normal, torch.empty(len(normal), 0))
        with torch.inference_mode():
            return self._network(inputs).cpu().numpy(), targets.cpu().numpy()


@final
class Exported(Model):
    """An exported graph; its metadata has the manifest of its data."""

    def __init__(self, path: Path, device: str) -> None:
        import onnxruntime

        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        _check_digest(path)
        providers = _providers(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            raise UserError(f"{path}: not a model that onnxruntime can load ({str(error).splitlines()[0]})") from error
        self.manifest = manifest_of(self._session.get_modelmeta().custom_metadata_map, path)
        self._onnx = tasks.load(self.manifest.task).onnx

    def outputs(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs for inputs as they are stored, and the targets that the inputs contain (language)."""
        import torch

        inputs, targets = self._onnx.pairs(_tensor(stored), torch.empty(len(stored), 0))
        feeds = raw.feeds(self.manifest, inputs.numpy())
        return np.asarray(self._session.run(None, feeds)[0]), targets.long().numpy()


def _tensor(stored: np.ndarray) -> torch.Tensor:
    """Return the array as a tensor, which needs memory that can be written."""
    import torch

    return torch.from_numpy(np.require(stored, requirements=["C", "W"]))


def _check_digest(path: Path) -> None:
    """Raise UserError if the export beside the model describes another file."""
    statement = path.with_name(results_layout.EXPORT)
    if path.name == results_layout.ONNX and statement.is_file():
        exported = read_export(statement)["onnx"]
        if exported["digest"] != file_digest(path):
            raise UserError(f"{path}: damaged or replaced: it is not the file that {statement} describes")


def _providers(device: str) -> list[str]:
    """Return the provider of onnxruntime for a device; `auto` is the CPU unless onnxruntime has CUDA."""
    import onnxruntime

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"--device {device}: allowed: auto, cpu, cuda, or cuda:N")
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    has_cuda = cuda in onnxruntime.get_available_providers()
    if device.startswith("cuda") and not has_cuda:
        raise UserError(f"--device {device}: this onnxruntime has no CUDA; allowed: auto, cpu")
    return [cuda, cpu] if has_cuda and device != "cpu" else [cpu]
