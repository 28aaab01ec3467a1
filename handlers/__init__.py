"""What a handler's author imports. Knows nothing of the server that runs it: no import from supervisor or state."""

from intermission.handlers.base import (
    Fatal,
    Handler,
    Limits,
    Output,
    Paused,
    Retry,
    Task,
    handler,
)
from intermission.handlers.schema import Fault, Invalid

__all__ = ["Fatal", "Fault", "Handler", "Invalid", "Limits", "Output", "Paused", "Retry", "Task", "handler"]
