"""The service ``upload``: keeps the body of a request as a file, with its digest, and can stop after any block.

One that is made of others needs no body: it is a task like those of other services, and copies them.
"""

import errno
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from intermission.handlers import digest, media
from intermission.handlers.base import Fatal, Output, Task, handler
from intermission.handlers.body import BodyInfo
from intermission.handlers.inputs import CONTENT

_BLOCK_BYTES: Final = 1 << 20
_CANNOT: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""How a filesystem says that it copies nothing itself."""
_TAIL_BYTES: Final = 64 << 10


class DigestMismatch(Fatal):
    """The bytes are not those that the client announced."""


class Damaged(Fatal):
    """The file does not end with what was received."""


@dataclass
class State:
    """How many bytes are in the file, and the states of their digests.

    ``digest`` is that of SHA-256; both are empty where they are not wanted or cannot be saved. ``tail`` is the CRC-32
    of the last ``tail_bytes`` of them.
    """

    received: int = 0
    digest: str = ""
    tail: int = 0
    tail_bytes: int = 0
    crc32c: str = ""


@dataclass
class Result:
    """The file as it was received."""

    filename: str | None
    size_bytes: int
    sha256: str | None
    """In hexadecimal; of the digests, those are there that were wanted."""
    crc32c: str | None
    media_type: str
    """What its bytes are, whatever was said of them."""


@handler("upload", stream=True)
def upload(task: Task[BodyInfo, State]) -> Result:
    """Write what arrives, with a checkpoint after each block."""
    params, state, out = task.params, task.state, task.output(CONTENT)
    _check_tail(out.path, state)
    if params.size_bytes is not None:
        out.reserve(params.size_bytes)
    sha256, crc32c = _digests(params, state, out.path)
    for block in _joined(task, out) if params.parts else task.blocks:
        if not params.parts:  # else the kernel has put it there
            out.write_bytes(block)
        sha256.update(block)
        crc32c.update(block)
        state.received += len(block)
        state.digest, state.crc32c = sha256.save(), crc32c.save()
        tail = block[-_TAIL_BYTES:]
        state.tail, state.tail_bytes = zlib.crc32(tail), len(tail)
        task.checkpoint(done=state.received, total=params.size_bytes, unit="bytes")
    if params.size_bytes is None:  # only now is it known how much there was to come
        task.checkpoint(done=state.received, total=state.received, unit="bytes")
    out.flush()
    result = Result(
        filename=params.filename,
        size_bytes=state.received,
        sha256=sha256.hexdigest(),
        crc32c=crc32c.hexdigest(),
        media_type=media.found(out.path, params.media_type),
    )
    _check(params, result)
    return result


def _digests(params: BodyInfo, state: State, path: Path) -> tuple[digest.Digest, digest.Digest]:
    """The SHA-256 and the CRC-32C of what is there, as far as they are wanted."""
    return (
        digest.sha256(state.digest, path, state.received) if "sha-256" in params.digests else digest.Unwanted(),
        digest.Crc32c(state.crc32c) if "crc32c" in params.digests else digest.Unwanted(),
    )


def _check(params: BodyInfo, result: Result) -> None:
    """See that it is what the client announced. Raises `DigestMismatch`."""
    pairs = (("SHA-256", params.sha256, result.sha256), ("CRC-32C", params.crc32c, result.crc32c))
    for name, announced, found in pairs:
        if announced not in {None, found}:
            raise DigestMismatch(f"the body has the {name} {found}, not {announced} as it was announced")


def _check_tail(path: Path, state: State) -> None:
    """See that the end of what was received is on disk as it was, before a byte is added. Raises `Damaged`."""
    with path.open("rb") as file:
        file.seek(state.received - state.tail_bytes)
        if zlib.crc32(file.read(state.tail_bytes)) != state.tail:
            raise Damaged(
                f"the file's end, before byte {state.received}, is not what was received: the disk has lost it; "
                "terminate this upload and send the data again"
            )


@upload.uploads
def _parts(params: BodyInfo) -> Mapping[str, str]:
    return {f"/parts/{n}": reference for n, reference in enumerate(params.parts)}


def _joined(task: Task[BodyInfo, State], out: Output) -> Iterator[bytes | memoryview]:
    """Each block of the parts, one behind the other, once it is copied."""
    target = os.open(out.path, os.O_WRONLY | os.O_CLOEXEC)  # `out` only appends, and to that the kernel does not copy
    try:
        end = 0
        for reference in task.params.parts:
            part = task.inputs.upload(reference)
            begin, end = end, end + part.size_bytes
            with part.path.open("rb") as source:
                while (at := task.state.received) < end:
                    size = _copy(source.fileno(), at - begin, target, at, min(_BLOCK_BYTES, end - at))
                    if not size:
                        raise Fatal(f"the file of {reference} is shorter than it was")
                    yield os.pread(source.fileno(), size, at - begin)
    finally:
        os.close(target)


def _copy(source: int, begin: int, target: int, at: int, size: int) -> int:
    """Copy inside the kernel, where it can, without a second copy of the blocks; how many bytes that were."""
    try:
        return os.copy_file_range(source, target, size, begin, at)
    except AttributeError:  # a Python that was built with an older C library than the one that is here
        pass
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    return os.pwrite(target, os.pread(source, size, begin), at)
