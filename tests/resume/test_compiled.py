"""A compiled training is exact, too. The first compilation on a machine takes a while."""

from __future__ import annotations

from typing import Any

from tests.resume.conftest import Fresh
from tests.support.project import FAILED, FINISHED, STOPPED, differences, merged

COMPILED: dict[str, Any] = {
    "model": {"name": "mlp", "params": {"hidden": [24], "dropout": 0.2}},
    "training": {"compile": True, "accumulation_steps": 4, "epochs": 2},
}
ONE_OF_TWO: dict[str, Any] = merged(COMPILED, {"training": {"accumulation_steps": 1}, "runtime": {"nproc": 2}})
LONG_S = 600.0


def test_a_compiled_training_resumes_with_the_same_bits(fresh: Fresh) -> None:
    """Micro-batches of 16 and 17 samples: each shape is compiled separately, whichever came first."""
    straight, run = fresh(COMPILED), fresh(COMPILED)
    assert straight.attempt(timeout_s=LONG_S) == FINISHED
    assert run.attempt({"point": "forward", "count": 38, "signal": "SIGTERM"}, timeout_s=LONG_S) == STOPPED
    assert run.attempt({"point": "commit", "count": 14, "signal": "SIGKILL"}, timeout_s=LONG_S) == FAILED
    assert run.attempt(timeout_s=LONG_S) == FINISHED
    assert differences(straight, run) == []
    assert run.findings == []
    plain = fresh(merged(COMPILED, {"training": {"compile": False}}))
    assert plain.attempt() == FINISHED
    assert differences(straight, plain) != []  # compiled code draws and adds in another order


def test_compiled_ranks_resume_with_the_same_bits(fresh: Fresh) -> None:
    straight, run = fresh(ONE_OF_TWO), fresh(ONE_OF_TWO)
    assert straight.attempt(timeout_s=LONG_S) == FINISHED
    stop = {"point": "optimizer", "count": 21, "rank": 1, "signal": "SIGTERM"}
    assert run.attempt(stop, timeout_s=LONG_S) == STOPPED
    assert run.attempt(timeout_s=LONG_S) == FINISHED
    assert run.began_at() == [0, 21]
    assert differences(straight, run) == []
    assert run.findings == []


IMPATIENT: dict[str, Any] = {"training": {"compile": True, "epochs": 1}, "runtime": {"hang_timeout_s": 4}}


def test_a_compilation_longer_than_the_hang_timeout_is_not_a_hang(fresh: Fresh) -> None:
    run = fresh(IMPATIENT)
    assert run.attempt(plant="tests.plugins.plants:compiling_takes_seconds") == FINISHED, run.log


def test_a_compilation_that_uses_no_cpu_is_a_hang(fresh: Fresh) -> None:
    run = fresh(IMPATIENT)
    assert run.attempt(plant="tests.plugins.plants:the_compiler_hangs") == FAILED
    assert "no rank has made a step for 4 s" in run.log
