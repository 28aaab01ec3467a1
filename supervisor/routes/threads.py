"""Calls that may wait for the disk, in threads, where what they work on is closed behind them."""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def to_its_end(call: Callable[[*Ts], T], *args: *Ts) -> T:
    """What a call in a thread returns; whoever cancels this, however often, waits for the thread all the same.

    A stop cancels every request, and a moment later everything that is left: what was closed then was still in use, and
    its number might have been another client's by the time the thread came to it.
    """
    calling = asyncio.get_running_loop().run_in_executor(None, call, *args)
    cancelled: asyncio.CancelledError | None = None
    while not calling.done():
        try:
            await asyncio.wait({calling})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        calling.exception()  # nobody wants to know, and asyncio would tell the log
        raise cancelled
    return calling.result()
