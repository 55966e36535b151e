"""Compute results in threads before they are requested, and yield them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def prefetch(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Generator[Out]:
    """Yield `function(item)` for each item, in order; with 0 workers each is computed when it is requested.

    Each worker computes at most two results in advance. When the generator is closed or raises, its threads end.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="everstep-loader")
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:  # bounds the memory that finished results take
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
