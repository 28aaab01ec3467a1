"""The two slot files of a task: a checkpoint in one ``pwrite``, and reading back the newest whole one.

The child writes the older of the two, so the newer one is never touched. A write that SIGKILL cut short has a wrong
checksum and was never completed. Against a power cut the store's row counts, not these files: hence the boot id.
"""

import os
import struct
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from intermission.supervisor.process.wire import MAX_STATE_BYTES

_HEADER: Final = struct.Struct("<8sIIQ")  # magic, checksum of the payload, its length, sequence
_MAGIC: Final = b"imslot01"
_MOST: Final = MAX_STATE_BYTES + (1 << 20)
NAMES: Final = ("slot.0", "slot.1")


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """A checkpoint as the child saw it. ``outputs`` are lengths in bytes, ``state`` is JSON."""

    sequence: int
    attempt: int
    version: int
    boot: str
    saved_at: float
    outputs: dict[str, int]
    done: float | None
    total: float | None
    unit: str | None
    state: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Slot).decode


@cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class SlotWriter:
    """The child's end: knows which file is the older one."""

    def __init__(self, folder: str, *, attempt: int, version: int, base: int) -> None:
        """Open what earlier attempts left, keeping only the checkpoint ``base``, from which this one goes on.

        A whole but unfit slot with a greater sequence (its outputs are shorter than it says) would otherwise win the
        next recovery over what this attempt is going to save.
        """
        self.sequence = base
        self._attempt = attempt
        self._version = version
        self._boot = boot_id()
        self._paths = [f"{folder}/{name}" for name in NAMES]
        self._files = [_opened(path) for path in self._paths]
        kept = None
        for index, fd in enumerate(self._files):
            if fd is None:
                continue
            if _sequence(fd) == base and kept is None and _read(fd) is not None:
                kept = index
            elif os.fstat(fd).st_size:
                os.pwrite(fd, bytes(_HEADER.size), 0)
        self._next = 1 - kept if kept is not None else 0

    def write(
        self, state: bytes, outputs: dict[str, int], done: float | None, total: float | None, unit: str | None
    ) -> None:
        """Save the next checkpoint. It is safe against any SIGKILL when this returns."""
        sequence = self.sequence + 1
        payload = _encode(
            Slot(sequence, self._attempt, self._version, self._boot, time.time(), outputs, done, total, unit, state)
        )
        if len(payload) > _MOST:  # it could be written, and never be read again
            message = f"the checkpoint has {len(payload)} bytes; at most {_MOST} can be saved: name fewer outputs"
            raise ValueError(message)
        data = _HEADER.pack(_MAGIC, zlib.crc32(payload), len(payload), sequence) + payload
        fd = self._files[self._next]
        if fd is None:  # a short task needs but one of them, and each file costs its making and its removal
            fd = self._files[self._next] = os.open(
                self._paths[self._next], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        written = os.pwrite(fd, data, 0)
        while written < len(data):  # a nearly full disk or a signal: the rest, or the error that says why
            written += os.pwrite(fd, data[written:], written)
        self.sequence = sequence
        self._next = 1 - self._next


def read_slots(folder: Path) -> list[Slot]:
    """The whole slots of a task that were written since this boot, newest first. None for a folder without any."""
    slots = []
    for name in NAMES:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            slot = _read(fd)
        finally:
            os.close(fd)
        if slot is not None and slot.boot == boot_id():
            slots.append(slot)
    return sorted(slots, key=lambda slot: slot.sequence, reverse=True)


def newest_sequence(folder: Path) -> int:
    """The greatest sequence in the slots' headers, unchecked: tells cheaply whether there is anything newer; or 0."""
    newest = 0
    for name in NAMES:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            newest = max(newest, _sequence(fd))
        finally:
            os.close(fd)
    return newest


def _opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _sequence(fd: int) -> int:
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return 0
    magic, _, _, sequence = _HEADER.unpack(header)
    return int(sequence) if magic == _MAGIC else 0


def _read(fd: int) -> Slot | None:
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, checksum, length, sequence = _HEADER.unpack(header)
    if magic != _MAGIC or length > _MOST:
        return None
    payload = os.pread(fd, length, _HEADER.size)
    if len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    try:
        slot = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return slot if slot.sequence == sequence else None
