"""Every message between our own processes, and how a stream of bytes is cut into them.

Two conversations: supervisor ↔ child over a `multiprocessing.Pipe`, supervisor ↔ fork server over a SOCK_SEQPACKET
socket (whose messages need no cutting, and carry the child's pipe end along). msgpack of tagged structs; never pickle,
because a child must not be able to run code in the supervisor.
"""

import errno
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors that say: the disk is full."""
NO_DISK: Final = NO_SPACE | {errno.EIO, errno.EFBIG, errno.EROFS}
"""What an upload is paused for: its bytes are still with its client, who is told why and may try again."""
MAX_STATE_BYTES: Final = 1 << 20
MAX_RESULT_BYTES: Final = 1 << 20
MAX_REPORT_BYTES: Final = MAX_RESULT_BYTES + (1 << 16)
"""The largest frame that a child may send; anything longer is a fault of the child."""
MAX_REQUEST_BYTES: Final = 1 << 24
"""The largest frame that a child takes."""
MAX_TEXT: Final = 16_384
"""Characters of an error's message or traceback that travel; the whole of it is in the task's log."""
MAX_PACKET_BYTES: Final = 1 << 17
"""The largest message on the fork server's socket: below the kernel's default send buffer of 208 KiB."""


class _Message(
    msgspec.Struct, frozen=True, tag=True, tag_field="message_type", array_like=True, forbid_unknown_fields=True
):
    pass


# Supervisor to child.


class UploadFile(msgspec.Struct, frozen=True, array_like=True):
    """An upload that the task reads."""

    id: str
    path: str
    filename: str | None
    media_type: str
    size_bytes: int
    sha256: str | None
    crc32c: str | None


class Begin(_Message, frozen=True):
    """The first message: all that the child has to know. ``state`` is None where it starts from the initial one."""

    task_id: str
    service: str
    user: str
    kind: str
    attempt: int
    folder: str
    sources: str
    directory: str
    uploads: list["UploadFile"]
    params: str
    state: str | None
    version: int
    sequence: int
    outputs: dict[str, int]
    done: float | None
    total: float | None
    unit: str | None
    checksum: tuple[str, bytes] | None = None
    """Of the body that comes with this attempt: the algorithm and what it must give."""


class PauseRequest(_Message, frozen=True):
    """Save and go at the next checkpoint."""


class BodyEnd(_Message, frozen=True):
    """Nothing more comes through the ring of the body than ``after`` bytes in all since the launch.

    ``complete`` is False where more of the data is to come in another request. ``cut``: this body itself broke off.
    """

    after: int
    complete: bool
    cut: bool = False


class Direct(_Message, frozen=True):
    """So many bytes of the body are to be read from the client's connection, until fewer than ``least`` come at a time.

    A time is until there is a batch, or ``patience_s``. Before them come those that went through the ring, ``after`` in
    all since the launch.
    """

    after: int
    count: int
    least: int
    patience_s: float


class Committed(_Message, frozen=True):
    """The store has the checkpoint of this sequence, power-loss safe."""

    sequence: int


Request = Begin | PauseRequest | BodyEnd | Direct | Committed

# Child to supervisor.


class Ready(_Message, frozen=True):
    """The handler is about to run."""


class Dirty(_Message, frozen=True):
    """There is a checkpoint in the slots that the store does not have yet."""


class Took(_Message, frozen=True):
    """So many bytes came from the client's connection, and no more is read there until the next `Direct`.

    ``waited_s``: how long the last of them, or none, were waited for in vain.
    """

    count: int
    waited_s: float = 0.0


class CommitRequest(_Message, frozen=True):
    """The outputs are synced; put the checkpoint of this sequence into the store now and answer `Committed`."""

    sequence: int


class Stopping(_Message, frozen=True):
    """As `CommitRequest`, and whatever happens from here on, this attempt has paused."""

    sequence: int


class Completed(_Message, frozen=True):
    """The handler returned; the outputs are synced as the checkpoint of this sequence has them. ``result`` is JSON."""

    result: str
    sequence: int = 0


class Errored(_Message, frozen=True):
    """The handler raised. ``final``: no retry can mend it. ``refusal`` names a reason where it never came to run."""

    kind: str
    type: str | None
    message: str
    traceback: str | None = None
    exit_code: int | None = None
    final: bool = False
    no_space: bool = False
    refusal: Literal["state_unreadable"] | None = None


Report = Ready | Dirty | Took | CommitRequest | Stopping | Completed | Errored

# Supervisor to fork server.


class Setup(_Message, frozen=True):
    """The first message: the handler modules to import."""

    modules: list[str]


class Launch(_Message, frozen=True):
    """Fork a child; its end of the pipe, and of a stream service those of the body, travel with this message.

    ``child`` is our number for it, never reused.
    """

    child: int
    service: str


class End(_Message, frozen=True):
    """End the child's whole tree."""

    child: int


Order = Setup | Launch | End

# Fork server to supervisor.


class ImportFailure(msgspec.Struct, frozen=True, array_like=True):
    """A handler module that cannot be used."""

    module: str
    error: str


class Hello(_Message, frozen=True):
    """The imports are done. ``threads``: modules started that many threads, which forking does not carry over."""

    modules: list[str]
    failures: list[ImportFailure]
    threads: int


class Launched(_Message, frozen=True):
    """The child exists. ``ticks`` is its start time in clock ticks since boot: with the pid, its identity."""

    child: int
    pid: int
    ticks: int
    started_at: float


class LaunchFailed(_Message, frozen=True):
    """There is no process; nothing runs."""

    child: int
    message: str
    errno: int | None = None
    """Of the system, where it refused one."""


class Killed(msgspec.Struct, frozen=True, array_like=True):
    """A process that was ended."""

    pid: int
    name: str
    started_at: float


class Ended(_Message, frozen=True):
    """The root was reaped and no process descended from it is left."""

    child: int
    exit_code: int | None
    signal: int | None
    cpu_s: float
    peak_memory_bytes: int
    killed: list[Killed]


News = Hello | Launched | LaunchFailed | Ended

_encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_news = msgspec.msgpack.Decoder(News).decode


def encode(message: Request | Report | Order | News) -> bytes:
    """The message as bytes; decode them with the decoder of their direction."""
    return _encode(message)


class FrameError(Exception):
    """The stream is not cut as a `multiprocessing.Connection` cuts it."""


def frame(payload: bytes) -> bytes:
    """The payload as `Connection.send_bytes` would write it: a 4-byte big-endian length, then the payload."""
    return len(payload).to_bytes(4, "big") + payload


class Frames:
    """Cuts what arrives into frames, without ever waiting for the rest of one.

    `Connection.poll()` being true does not mean that ``recv_bytes()`` returns: a child that is stopped in the middle of
    a message would stop the supervisor's loop with it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Every frame that is now whole. Raises `FrameError` for one longer than allowed: the buffer stays bounded."""
        self._buffer += data
        while len(self._buffer) >= 4:  # noqa: PLR2004 -- the length's own size
            length = int.from_bytes(self._buffer[:4], "big")
            if length > self._most:
                message = f"a message of {length} bytes (at most {self._most} are allowed)"
                raise FrameError(message)
            if len(self._buffer) < 4 + length:
                return
            payload = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            yield payload
