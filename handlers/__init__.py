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
from intermission.handlers.body import BodyInfo
from intermission.handlers.inputs import Inputs, Upload, UploadRef
from intermission.handlers.schema import Fault, Invalid

__all__ = [
    "BodyInfo",
    "Fatal",
    "Fault",
    "Handler",
    "Inputs",
    "Invalid",
    "Limits",
    "Output",
    "Paused",
    "Retry",
    "Task",
    "Upload",
    "UploadRef",
    "handler",
]
