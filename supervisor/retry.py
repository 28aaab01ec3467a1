"""When to try again. Pure: what is random is handed in."""

from collections.abc import Callable
from typing import Final

from intermission.handlers.base import Retry
from intermission.state.models import RetryPolicy
from intermission.state.store import WARY_AFTER

GIVE_UP_AFTER: Final = 5
"""Losses at one checkpoint after which a task fails, resumable."""
STORE_RETRY_S: Final = 1.0
"""Before what the store could not commit (it is full, or locked by another program) is asked of it again."""
_LOSS_BASE_S: Final = 1.0
_LOSS_CAP_S: Final = 60.0


def policy(usual: Retry, own: RetryPolicy | None) -> Retry:
    """What holds for a task: its own, or else its handler's."""
    return usual if own is None else Retry(own.errors, own.base_s, own.cap_s)


def backoff_s(retry: Retry, errors_before: int, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after an error: exponential with full jitter, so that what failed together returns spread out."""
    return uniform(0, min(retry.cap_s, retry.base_s * 2.0 ** min(errors_before, 60)))


def loss_wait_s(losses: int) -> float:
    """Seconds to wait after so many losses at one checkpoint: an interruption is free, a pattern of them is not."""
    return 0.0 if losses < WARY_AFTER else min(_LOSS_CAP_S, _LOSS_BASE_S * 2.0 ** (losses - WARY_AFTER))
