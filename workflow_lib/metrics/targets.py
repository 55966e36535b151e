"""The target of a sample in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflow_lib.metrics.numbers import six_digits

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workflow_lib.data import Manifest


def target_text(target: Tensor | np.ndarray, manifest: Manifest) -> str:
    """Return the target of a sample, as a split has it, in words and in the units of the data; empty for others."""
    if manifest.kind == "classes":
        return manifest.classes[int(target)]
    if manifest.kind == "labels":
        return (
            ", ".join(name for name, value in zip(manifest.classes, target.tolist(), strict=True) if value)
            or "no label"
        )
    if manifest.kind == "numbers":
        scales = zip(target.reshape(-1).tolist(), manifest.target_mean, manifest.target_std, strict=True)
        told = [six_digits(value * std + mean) for value, mean, std in scales]
        names = manifest.outputs if len(manifest.outputs) == len(told) > 1 else ("",) * len(told)
        return ", ".join(f"{name} {text}".strip() for name, text in zip(names, told, strict=True))
    return ""
