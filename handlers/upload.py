"""The service ``upload``: keeps the body of a request as a file, with its SHA-256, and can stop after any block."""

from dataclasses import dataclass

from intermission.handlers import digest
from intermission.handlers.base import Fatal, Task, handler
from intermission.handlers.body import BodyInfo
from intermission.handlers.inputs import CONTENT


class DigestMismatch(Fatal):
    """The bytes are not those that the client announced."""


@dataclass
class State:
    """How many bytes are in the file, and the state of their digest (empty where that cannot be saved)."""

    received: int = 0
    digest: str = ""


@dataclass
class Result:
    """The file as it was received."""

    filename: str | None
    size_bytes: int
    sha256: str
    media_type: str


@handler("upload", stream=True)
def upload(task: Task[BodyInfo, State]) -> Result:
    """Write what arrives, with a checkpoint after each block."""
    params, state, out = task.params, task.state, task.output(CONTENT)
    sha256 = digest.resumed(state.digest, out.path, state.received)
    for block in task.body:
        out.write_bytes(block)
        sha256.update(block)
        state.received += len(block)
        state.digest = sha256.save()
        task.checkpoint(done=state.received, total=params.size_bytes, unit="bytes")
    found = sha256.hexdigest()
    if params.sha256 not in {None, found}:
        raise DigestMismatch(f"the body has the SHA-256 {found}, not {params.sha256} as it was announced")
    return Result(params.filename, state.received, found, params.media_type)
