"""What a task may use: the operator's sources, the directory, and the uploads that its params name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

Format = Literal["csv", "jsonl", "json"]

CONTENT: Final = "content"
"""The output in which an upload's bytes are."""
_ENDINGS: Final[Mapping[str, Format]] = {"csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "json"}
_MEDIA_TYPES: Final[Mapping[str, Format]] = {
    "application/jsonl": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/json": "json",
}
_PREFIX: Final = "upload:"
_REFERENCE: Final = re.compile(_PREFIX + r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def upload_id(text: str) -> str | None:
    """The task's id in ``upload:<id>``; None for anything else."""
    match = _REFERENCE.fullmatch(text)
    return match[1] if match else None


def _reference(text: str) -> str:
    if upload_id(text) is None:
        raise PydanticCustomError("upload", "Input should be upload: and the id of a completed upload")
    return text


UploadRef = Annotated[
    str, AfterValidator(_reference), WithJsonSchema({"type": "string", "pattern": f"^{_REFERENCE.pattern}$"})
]
"""For a field of params that names an upload; ``upload:<id>``."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A completed upload. Nobody changes or deletes its file while the task that names it is unfinished."""

    id: str
    path: Path
    filename: str | None
    """As the client said it: data, never a path."""
    media_type: str
    """What its bytes are, whatever the client said of them."""
    size_bytes: int
    sha256: str | None = None
    """Lower-case hexadecimal; None where the client wanted another digest."""
    crc32c: str | None = None
    """The same; None where the client did not want it."""

    @property
    def format(self) -> Format:
        """How its rows are written: as the ending of its file name says, else as its media type does, else CSV."""
        ending = (self.filename or "").rpartition(".")[2].lower()
        return _ENDINGS.get(ending) or _MEDIA_TYPES.get(self.media_type.partition(";")[0].strip().lower(), "csv")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What there is to use, for a task and for the checks before it starts."""

    sources: Path
    """The folder of the sources that the operator configured."""
    directory: Path
    """The database of teams and their members."""
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    """By id: those that the handler's `Handler.uploads` found in the params."""

    def upload(self, reference: str) -> Upload:
        """The upload of ``upload:<id>``. Raises LookupError for one that is not there."""
        found = self.uploads.get(upload_id(reference) or "")
        if found is None:
            raise LookupError(f"there is no {reference}")
        return found
