"""A run that reads its data in place is as exact as a run that holds it in memory, wherever it is killed or stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.resume.conftest import Fresh
from tests.support.cases import IN_TRAINING, RANKS
from tests.support.in_place import FORMATS, experiment
from tests.support.project import FAILED, FINISHED, KILLED, PASS, STOPPED, TERMINATED


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 40,000 tokens: more than the parts of which a start reads only a few."""
    path = tmp_path_factory.mktemp("tokens") / "text.bin"
    values = np.cumsum(np.random.default_rng(0).integers(0, 3, 40_000)) % 61
    values.astype(np.uint16).tofile(path)
    return path


def settings(tokens: Path, ranks: int = 1, *, in_memory: bool = False) -> dict[str, Any]:
    return {
        "data": {
            "name": "tokens",
            "params": {"path": str(tokens), "vocabulary": 61, "context": 32},
            "in_memory": in_memory,
        },
        "model": {"name": "transformer", "params": {"width": 16, "layers": 1, "heads": 2}},
        "training": {"epochs": 9 if ranks == 1 else 3, "batch_size": 60, "accumulation_steps": 2 if ranks == 1 else 1},
        "runtime": {"nproc": ranks, "workers": 0 if in_memory else 2},
    }


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_run_interrupted_once_at_every_point_is_exact(
    fresh: Fresh, reference: Fresh, tokens: Path, signal: str
) -> None:
    run = fresh(settings(tokens))
    for place, number, rank in IN_TRAINING:
        code = run.attempt({"point": place, "count": number, "signal": signal, "rank": rank})
        if signal == "SIGTERM":
            assert code == (STOPPED if place != "attempt" else TERMINATED), place
        else:
            assert code == (KILLED if rank < 0 else FAILED), place
    assert "read in place" in run.log
    assert run.verdict(reference(settings(tokens, in_memory=True))) == PASS


def test_ranks_that_read_in_place_are_exact(fresh: Fresh, reference: Fresh, tokens: Path) -> None:
    """`scripts/chaos formats` has other formats with two ranks, too."""
    ranks = 3
    run = fresh(settings(tokens, ranks))
    for place, number in RANKS:
        for signal, code in (("SIGKILL", FAILED), ("SIGTERM", STOPPED)):
            assert run.attempt({"point": place, "count": number, "signal": signal, "rank": ranks - 1}) == code, place
    assert run.verdict(reference(settings(tokens, ranks, in_memory=True))) == PASS


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_exact_too(
    fresh: Fresh, reference: Fresh, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """`scripts/chaos formats` kills and stops at every point, with one, two and three ranks."""
    folder = tmp_path_factory.getbasetemp() / "in-place"
    run = fresh(experiment(folder, name, 2))
    for place, number, signal in (("load", 1, "SIGKILL"), ("backward", 4, "SIGTERM"), ("fetch", 3, "SIGKILL")):
        expected = STOPPED if signal == "SIGTERM" else FAILED
        assert run.attempt({"point": place, "count": number, "signal": signal, "rank": 1}) == expected, place
    assert run.verdict(reference(experiment(folder, name, 2, in_memory=True))) == PASS


def test_a_file_that_is_damaged_during_a_training_ends_it_and_can_be_restored(
    fresh: Fresh, reference: Fresh, tokens: Path
) -> None:
    """Nothing is trained on other samples: neither by the attempt that sees the change, nor by the next one."""
    run = fresh(settings(tokens))
    assert run.attempt({"point": "commit", "count": 9, "signal": "SIGTERM"}) == STOPPED
    content = tokens.read_bytes()
    try:
        tokens.write_bytes(content[:30_001] + bytes([content[30_001] ^ 1]) + content[30_002:])
        assert run.attempt() not in (FINISHED, STOPPED)
        assert "are not those that preprocess read" in run.log
    finally:
        tokens.write_bytes(content)
    assert run.verdict(reference(settings(tokens, in_memory=True))) == PASS
