"""A disk that takes long to read what is downloaded, and that tells if a file or a client is closed under a read."""

import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

from intermission.handlers import Task, handler

READ_S: Final = 3.0
"""Longer than requests have until they are ended when the server stops."""
_sendfile = os.sendfile
_pread = os.pread


def _slow_sendfile(client: int, file: int, offset: int, count: int) -> int:
    _wait(client, file)
    return _sendfile(client, file, offset, count)


def _slow_pread(file: int, count: int, offset: int) -> bytes:
    if threading.current_thread() is not threading.main_thread() and "/files/" in os.readlink(f"/proc/self/fd/{file}"):
        _wait(file)
    return _pread(file, count, offset)


def _wait(*descriptors: int) -> None:
    before = [os.fstat(fd).st_ino for fd in descriptors]
    _say("a download is being read")
    time.sleep(READ_S)
    try:
        now = [os.fstat(fd).st_ino for fd in descriptors]
    except OSError:
        now = []
    if now != before:
        _say("it was closed under its read")


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")
    sys.stderr.flush()


os.sendfile = _slow_sendfile  # type: ignore[assignment]
os.pread = _slow_pread


@dataclass
class Nothing:
    """No params, no state."""


@handler("reading")
def reading(task: Task[Nothing, Nothing]) -> None:
    """Nothing; without a handler nobody would import this module."""
