"""The log: one line for each record, whoever wrote it, in a form for people or for programs."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"


def log(body: str, log_format: str, level: str = "info") -> list[str]:
    """Run these lines in a process of their own, for logging is set up once in each; answer what is on stderr."""
    script = f"""
import logging, structlog
ours = structlog.get_logger("intermission.test")
from intermission.supervisor import logs
logs.configure({level!r}, {log_format!r})
{body}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.splitlines()


def records(body: str, level: str = "info") -> list[dict[str, Any]]:
    """The JSON records that these lines write."""
    return [json.loads(line) for line in log(body, "json", level)]


def test_our_record_is_a_line_of_json() -> None:
    """Event, values, level, logger, and the time in UTC as RFC 3339 has it."""
    (record,) = records('ours.warning("launched %s", "a child", pid=7, of={"x": 1})')

    written = datetime.fromisoformat(record.pop("timestamp"))
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert record == {
        "event": "launched a child",
        "pid": 7,
        "of": {"x": 1},
        "level": "warning",
        "logger": "intermission.test",
    }


def test_a_library_goes_the_same_way() -> None:
    """An error that aiohttp's server logs has the same form as ours."""
    (record,) = records('logging.getLogger("aiohttp.server").error("bad %s", "request", extra={"peer": "x"})')

    assert re.fullmatch(TIME, record.pop("timestamp"))
    assert record == {"event": "bad request", "peer": "x", "level": "error", "logger": "aiohttp.server"}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(log_format: str) -> None:
    """Local variables hold secrets; the renderings that show them are the defaults of structlog."""
    body = """
def fail(token):
    raise ValueError("broken")
try:
    fail("hunter" + "2")
except ValueError:
    ours.exception("failed")
"""
    text = "\n".join(log(body, log_format))

    assert "ValueError: broken" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(("level", "logged"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_level_holds_for_ours_and_theirs(level: str, logged: int) -> None:
    """What is below the level is not written."""
    for logger in ("ours", 'logging.getLogger("theirs")'):
        body = f'log = {logger}\nlog.debug("a")\nlog.info("b")\nlog.warning("c")'

        assert len(records(body, level)) == logged


@pytest.mark.parametrize(("level", "enabled"), [("info", 0), ("debug", 1)])
def test_access_log_is_off_unless_debugging(level: str, enabled: int) -> None:
    """A line for each request is written only on demand."""
    assert len(records('logging.getLogger("aiohttp.access").info("GET /")', level)) == enabled


def test_console_is_for_people() -> None:
    """A time, a level, the event and its values; no colours where nobody sees them."""
    (line,) = log('ours.info("started", port=8080)', "console")

    assert re.fullmatch(rf"{TIME} \[info +\] started +\[intermission\.test\] port=8080", line)


def test_console_is_safe_from_what_clients_send() -> None:
    """A file name may hold anything: it can neither drive the terminal nor forge a second line."""
    lines = log(r'ours.info("bad\x1b[2J", name="a\x1b[31m\nforged")', "console")

    assert len(lines) == 1
    assert lines[0].isprintable()
