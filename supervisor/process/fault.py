"""What somebody raised, as the report that an attempt ends with."""

import traceback

from intermission.handlers.base import Fatal
from intermission.handlers.schema import Unencodable
from intermission.supervisor.process import wire


def errored(error: BaseException, *, stream: bool) -> wire.Errored:
    """The report of an exception. ``stream``: of a stream service, for which less counts as a want of space."""
    trace = "".join(traceback.format_exception(error))
    return wire.Errored(
        kind="exit" if isinstance(error, SystemExit) else "exception",
        type=sendable(type(error).__name__)[:200],
        message=sendable(_text(error))[: wire.MAX_TEXT],
        traceback=sendable(trace)[-wire.MAX_TEXT :],
        exit_code=exit_code(error) if isinstance(error, SystemExit) else None,
        final=isinstance(error, Fatal | Unencodable),
        no_space=isinstance(error, OSError) and error.errno in (wire.NO_DISK if stream else wire.NO_SPACE),
    )


def exit_code(error: SystemExit) -> int:
    """What the process would leave with."""
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def sendable(text: str) -> str:
    """The text, with halves of surrogate pairs (a file's name that is not UTF-8 has them) escaped."""
    return text.encode(errors="backslashreplace").decode()


def _text(error: BaseException) -> str:
    """What the exception says; its class may be the author's, and so may the fault in its ``__str__``."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 -- it may raise anything
        return f"<{type(error).__name__} whose text cannot be had>"
