import json
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from workflow_lib.errors import UserError
from workflow_lib.runtime import seed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed.seed_everything(3)
    yield
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def draw(count: int = 700) -> tuple[list[float], list[float], list[float]]:
    """Draw more numbers than one block of the twister, and an odd number of normal deviates."""
    python = [random.gauss(0, 1) for _ in range(count + 1)] + [random.random() for _ in range(count)]
    numpy = [*np.random.standard_normal(count + 1).tolist(), *np.random.random_sample(count).tolist()]
    return python, numpy, torch.randn(count + 1).tolist()


@pytest.mark.parametrize("used", [0, 1, 2, 311, 312, 623, 624, 625])
def test_a_restored_generator_continues_exactly(used: int) -> None:
    [random.getrandbits(32) for _ in range(used)]
    np.random.randint(0, 2**32, used, dtype=np.uint32)
    torch.rand(used)
    state = seed.capture_rng(CPU)
    expected = draw()
    seed.restore_rng(state)
    assert draw() == expected
    seed.restore_rng(state)
    assert draw() == expected


@pytest.mark.parametrize("deviates", [1, 2, 3])
def test_a_spare_normal_deviate_is_part_of_the_state(deviates: int) -> None:
    for _ in range(deviates):
        random.gauss(0, 1), np.random.standard_normal()
    before = random.getstate(), np.random.get_state()
    state = seed.capture_rng(CPU)
    draw()
    seed.restore_rng(state)
    assert random.getstate() == before[0]
    assert [str(part) for part in np.random.get_state()] == [str(part) for part in before[1]]
    assert np.array_equal(np.random.get_state()[1], before[1][1])
    assert random.getstate()[2] is None or deviates % 2 == 1


def test_a_captured_state_does_not_change_when_numbers_are_drawn() -> None:
    state = seed.capture_rng(CPU)
    copies = {name: tensor.clone() for name, tensor in state.items()}
    draw()
    assert all(torch.equal(state[name], copies[name]) for name in copies)


def test_a_generator_that_is_not_restored_changes_the_numbers() -> None:
    for name in ("python", "numpy", "torch"):
        state = seed.capture_rng(CPU)
        expected = draw()
        other = seed.capture_rng(CPU)
        seed.restore_rng(state | {name: other[name]})
        assert draw() != expected


def test_states_are_bytes_only() -> None:
    assert {tensor.dtype for tensor in seed.capture_rng(CPU).values()} == {torch.uint8}


def test_a_state_restores_in_another_process() -> None:
    state = {name: tensor.tolist() for name, tensor in seed.capture_rng(CPU).items()}
    program = (
        "import json, sys, random, numpy, torch; from workflow_lib.runtime import seed\n"
        "seed.restore_rng({k: torch.tensor(v, dtype=torch.uint8) for k, v in json.load(sys.stdin).items()})\n"
        "print(json.dumps([random.gauss(0, 1), numpy.random.standard_normal(), torch.rand(1).item()]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item()]


def test_a_replaced_numpy_generator_is_rejected_by_name() -> None:
    kept = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        with pytest.raises(UserError, match="PCG64"):
            seed.capture_rng(CPU)
    finally:
        np.random.set_bit_generator(kept)


def test_ranks_draw_from_different_streams_and_equal_ranks_from_equal_ones() -> None:
    def first(rank: int) -> tuple[float, float, float]:
        seed.seed_everything(5, rank)
        return random.random(), np.random.random_sample(), torch.rand(1).item()

    assert first(0) == first(0)
    assert all(zero != other for zero, other in zip(first(0), first(1), strict=True))


def test_a_derived_seed_depends_on_every_name_and_its_boundaries() -> None:
    seeds = [
        seed.derive(0, "data", 1),
        seed.derive(1, "data", 1),
        seed.derive(0, "data", "1"),
        seed.derive(0, "data", 11),
        seed.derive(0, "data", 1, 1),
        seed.derive(0, "data1"),
        seed.derive(0),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= value < 2**63 for value in seeds)


def test_derived_seeds_never_change() -> None:
    assert seed.derive(0, "permutation", 3) == 1196228146948637743
