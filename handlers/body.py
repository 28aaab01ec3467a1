"""What a stream service knows of its body before the first byte: its params, whatever the service."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from intermission.handlers.digest import Algorithm
from intermission.handlers.inputs import UploadRef

MAX_SIZE: int = 2**63 - 1


@dataclass
class BodyInfo:
    """What the request that created the task said of the bytes that were to come; nothing of it is to be trusted."""

    filename: Annotated[str, Field(max_length=4096)] | None = None
    """Data, never a path."""
    media_type: Annotated[str, Field(max_length=255)] = "application/octet-stream"
    size_bytes: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """None: known when the last byte is there."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What the client says that it is, in hexadecimal: to be checked."""
    crc32c: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")] | None = None
    """The same by another algorithm."""
    open_ended: bool = False
    """Whether it ends only when its client says so, and not with its last byte, though it is known how many come."""
    digests: list[Algorithm] = field(default_factory=lambda: ["sha-256"])
    """What is to be computed."""
    metadata: Annotated[str, Field(max_length=16_384)] | None = None
    """What a tus client says beside that, exactly as it was sent."""
    concat: Annotated[str, Field(max_length=16_384)] | None = None
    """Whether it is part of another or made of parts, as a tus client said it."""
    parts: list[UploadRef] = field(default_factory=list)
    """The uploads that it is made of, in their order: then its work is to join them, and no body comes."""
