"""A first experiment file of about fifteen lines, for an editor to go on with."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from workflow_lib.config.template import inline
from workflow_lib.start.guess import Guess
from workflow_lib.text import slug

COMMON = {"optimizer": {"lr": 0.001}, "schedule": {"name": "cosine", "warmup_epochs": 1}}
DIGITS = Guess(
    {"name": "digits"},
    {"model": {"name": "cnn"}, "training": {"epochs": 10, "batch_size": 64}},
    ["1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn"],
)


def first_experiment(name: str, guess: Guess = DIGITS) -> str:
    """Return the text of an experiment file with the guessed settings, and what was found as comments."""
    sections = {"name": slug(_in_latin(name)) or "mine", "data": guess.data, **COMMON, **guess.settings}
    order = ("name", "data", "model", "optimizer", "schedule", "training")
    comments = [*guess.found, *(f"odd: {line}" for line in guess.odd)]
    lines = [f"# {' '.join(comment.splitlines())}" for comment in comments]  # a name in the data may have several
    lines += [line for key in order for line in _lines(key, sections[key])]
    lines.append("# every setting with its meaning: everstep init --all")
    return "\n".join(lines) + "\n"


def _in_latin(name: str) -> str:
    """Return the name without accents: `projekt_oe` for `Projekt_Ö`, `cafe` for `Café`."""
    german = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "o", "æ": "ae", "ł": "l", "đ": "d"})
    spelled = unicodedata.normalize("NFC", name).casefold().translate(german)
    return "".join(c for c in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(c))


def _lines(key: str, value: Any) -> Iterator[str]:
    """Yield a setting; a section of several settings takes a line for each."""
    if not isinstance(value, Mapping):
        yield f"{key}: {inline(value)}"
    elif key in ("model", "optimizer", "schedule", "early_stopping"):
        yield f"{key}: {inline(dict(value))}"
    else:
        yield f"{key}:"
        for name, inner in value.items():
            yield from (f"  {line}" for line in _lines(name, inner))
