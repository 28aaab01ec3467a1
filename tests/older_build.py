"""A Python that was built with an older C library than the one here, as those are that are to run everywhere."""

import fcntl
import os
from dataclasses import dataclass

from intermission.handlers import Task, handler

for _module, _lacking in ((os, ("memfd_create", "MFD_ALLOW_SEALING", "copy_file_range")), (fcntl, ("F_ADD_SEALS",))):
    for _name in _lacking:
        if hasattr(_module, _name):
            delattr(_module, _name)


@dataclass
class Nothing:
    """No params, no state."""


@handler("lacking")
def lacking(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
