"""What a test changes in the process of an attempt before it starts: bugs that must be found, and a look inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workflow_lib.training import Trainer


def rank_one_hangs() -> None:
    """Rank 1 sleeps in its third step."""
    _in_step(3, lambda: time.sleep(3600))


def rank_one_raises() -> None:
    """Rank 1 fails in its third step."""

    def fail() -> None:
        raise ValueError("a bug in a person's model")

    _in_step(3, fail)


def samples_are_written() -> None:
    """Each rank writes the numbers of the samples of every step that it finished: epoch, then samples."""
    step = Trainer._step

    def watched(self: Trainer, batch: Any) -> None:
        epoch = self.state.cursor.epoch
        mine = [row for start, stop in self._windows for row in batch[start:stop].tolist()]
        step(self, batch)
        with open(f"samples-{self.ranks.rank}.txt", "a") as file:
            file.write(" ".join(map(str, [epoch, *mine])) + "\n")

    Trainer._step = watched  # type: ignore[method-assign]


def _in_step(number: int, act: Callable[[], object]) -> None:
    step = Trainer._step

    def struck(self: Trainer, batch: Any) -> None:
        if self.ranks.rank == 1 and self.state.cursor.step == number:
            act()
        step(self, batch)

    Trainer._step = struck  # type: ignore[method-assign]
