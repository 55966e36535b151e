"""The chapter on data: the sizes of the splits, the samples of each class, the columns, and some training samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.report import samples
from workflow_lib.results.read_runs import Row

if TYPE_CHECKING:
    from workflow_lib.data import Manifest
    from workflow_lib.data.view import SplitView

SHOWN = {"image": 12, "text": 3, "columns": 4}
MAX_CLASSES = 30
MAX_FEATURES = 30


def data_chapter(manifest: Manifest, work: Path) -> Row:
    """Return the sizes of the splits, the counts of the classes, the columns, and evenly spaced training samples."""
    from workflow_lib.data import SPLITS

    train = manifest.splits["train"].per_class
    order = sorted(range(len(train)), key=lambda number: -train[number])
    is_long = len(order) > MAX_CLASSES
    chosen = sorted([*order[: MAX_CLASSES // 2], *order[-MAX_CLASSES // 2 :]]) if is_long else range(len(train))
    most = max((count for split in manifest.splits.values() for count in split.per_class), default=0)
    split = samples.opened(manifest, "train", work)
    return {
        "splits": {name: manifest.splits[name].samples for name in SPLITS},
        "shape": _shape(manifest),
        "classes": [
            (manifest.classes[number], [manifest.splits[name].per_class[number] for name in SPLITS])
            for number in chosen
        ],
        "all_classes": len(train),
        "most": max(1, most),
        "counted": {"masks": "pixels", "labels": "samples with the label"}.get(manifest.kind, "samples"),
        "features": [_feature(manifest, number) for number in range(min(MAX_FEATURES, len(manifest.features)))],
        "all_features": len(manifest.features),
        "targets": [
            (
                manifest.outputs[number]
                if manifest.outputs
                else f"number {number}"
                if len(manifest.target_mean) > 1
                else "number",
                mean,
                std,
            )
            for number, (mean, std) in enumerate(zip(manifest.target_mean, manifest.target_std, strict=True))
        ],
        "samples": _samples(split, manifest) if split is not None and len(split) else [],
    }


def _shape(manifest: Manifest) -> str:
    """Return the inputs in words."""
    shape = manifest.input_shape
    if manifest.has_tokens:
        (length,) = manifest.spec.input_shape
        return f"texts of up to {length:,} tokens, vocabulary of {len(manifest.vocabulary):,}"
    if manifest.features:
        return f"rows with {len(manifest.features):,} columns"
    if len(shape) == 3:
        return f"images of {shape[1]} × {shape[2]} pixels, {shape[0]} channel{'s' * (shape[0] != 1)}"
    return f"arrays of {' × '.join(map(str, shape))} numbers"


def _feature(manifest: Manifest, number: int) -> Row:
    from workflow_lib.datasets._columns import ALWAYS

    feature = manifest.features[number]
    if feature.categories:
        known = [name for name in feature.categories if name not in ALWAYS]  # which every such column has
        return {"name": feature.name, "categories": known or feature.categories}
    mean = manifest.mean[number] if number < len(manifest.mean) else None
    return {"name": feature.name, "mean": mean, "std": manifest.std[number] if mean is not None else None}


def _samples(split: SplitView, manifest: Manifest) -> list[Row]:
    """Return training samples with their classes, spaced evenly."""
    kind = next(iter(samples.shown(split, manifest, [0])[0]), None)
    if kind is None:
        return []
    from workflow_lib.metrics.targets import target_text

    numbers = sorted({place * len(split) // SHOWN[kind] for place in range(SHOWN[kind])})
    found = samples.shown(split, manifest, numbers)
    return [
        {**content, "target": target_text(split.target(number), manifest)}
        for number, content in zip(numbers, found, strict=True)
    ]
