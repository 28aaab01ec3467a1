"""Threads that are all there from the start: a lack of them must not be met in the middle of a task."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def staffed(count: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads all run already. Raises RuntimeError where so many are not to be had."""
    pool, all_there = ThreadPoolExecutor(count, name), Barrier(count)
    try:
        for _ in range(count):  # each waits for the last, so that none takes the turn of another
            pool.submit(all_there.wait)
    except RuntimeError:
        all_there.abort()
        raise
    return pool
