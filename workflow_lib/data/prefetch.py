"""Work done by threads ahead of who asks for it, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def prefetch(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Generator[Out]:
    """`function(item)` of each item, in the order of items; without workers each is computed when it is asked for.

    At most two results a worker wait. Closed or left by an error, no thread is left behind.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="everstep-loader")
    under_way: deque[Future[Out]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
