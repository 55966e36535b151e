"""Samples of a split as they are shown in the report: as a small picture, as a text, or as the values of a row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_lib.errors import DataError
from workflow_lib.results.read_runs import Row

if TYPE_CHECKING:
    import numpy as np

    from workflow_lib.data import Manifest
    from workflow_lib.data.view import SplitView

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 400
SHOWN_FEATURES = 12
PAD = 0  # token that fills a short text


def opened(manifest: Manifest, split: str, work: Path) -> SplitView | None:
    """Return a split to look at; None, with a warning, if its data was deleted: the report is complete without it."""
    from workflow_lib.data.view import view_split

    try:
        return view_split(manifest, split, work)
    except DataError as error:
        logger.warning("no samples of %s are shown: %s", split, error)
        return None


def shown(split: SplitView, manifest: Manifest, numbers: Sequence[int]) -> list[Row]:
    """Return each sample by its number: its `image` as a data URI, its `text`, or its `columns`; nothing for others."""
    return [_sample(split, manifest, number) for number in numbers]


def _sample(split: SplitView, manifest: Manifest, number: int) -> Row:
    from workflow_lib.metrics import pictures

    if manifest.has_tokens:
        return {"text": _text(split.stored(number), manifest)}
    if manifest.features:
        return {"columns": _values(split.stored(number), manifest)}
    if len(manifest.input_shape) == 3:
        return {"image": pictures.thumbnail(split.normalised(number), manifest)}
    return {}


def _text(tokens: np.ndarray, manifest: Manifest) -> str:
    """Return the beginning of a text, without the tokens that fill its end."""
    from workflow_lib.metrics.texts import decoded

    kept = tokens if manifest.kind == "tokens" else tokens[tokens != PAD]
    text = decoded(kept.tolist(), manifest)
    return text[:SHOWN_CHARACTERS] + "…" * (len(text) > SHOWN_CHARACTERS)


def _values(stored: np.ndarray, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the first columns of a row: name and value, `–` for a missing number."""
    found = []
    for feature, value in zip(manifest.features[:SHOWN_FEATURES], stored.tolist(), strict=False):
        if feature.categories:
            text = feature.categories[int(value)]
        else:
            number = value + feature.centre
            text = "–" if value != value else f"{number:.6g}"
        found.append((feature.name, text))
    return found
