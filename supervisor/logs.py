"""What the log looks like, for our own records and for those of libraries that use the standard library's `logging`.

Both take one road: processors here, one handler on the root logger, one line on stderr for each record.
"""

import logging
import sys
import time
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from intermission.supervisor.config import LogFormat, LogLevel

_TRACEBACKS: Final = frozenset({"exception", "stack"})
_SELDOM_S: Final = 60.0


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Set up logging for this process; to be called once, before anything is logged. Times are RFC 3339 in UTC."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # As plain text: the renderings of rich and of dict_tracebacks show local variables, and those hold secrets.
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:4], structlog.stdlib.ExtraAdder(), *shared[4:]],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(log_format)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A line for each request says little that metrics do not, and costs as much as answering: only on demand.
    logging.getLogger("aiohttp.access").setLevel(logging.INFO if level == "debug" else logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class Seldom:
    """Tells what a crowd of clients makes happen at every moment: once a minute, or the log would fill the disk."""

    def __init__(self) -> None:
        self._not_before = 0.0

    def warning(self, event: str, **fields: object) -> None:
        """Log it, if nothing was a moment ago."""
        if time.monotonic() >= self._not_before:
            self._not_before = time.monotonic() + _SELDOM_S
            structlog.get_logger(__name__).warning(event, **fields)


def _rendering(log_format: LogFormat) -> list[Processor]:
    if log_format == "json":
        return [structlog.processors.JSONRenderer()]
    return [_printable, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: a file name sent by a client could rewrite the operator's terminal."""
    return {
        key: repr(value)[1:-1]
        if isinstance(value, str) and not value.isprintable() and key not in _TRACEBACKS
        else value
        for key, value in event.items()
    }
