"""Following a log: ``GET /tasks/{id}/log?follow=1``, as a client of server-sent events sees it."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import pytest
import pytest_asyncio
from harness import Server, pointers, problem, serving, until
from verb_tools import launched, log, nothing_left, playing

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOYS: Final = "toys,follow_toys"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One server for every test here."""
    async with playing(tmp_path_factory.mktemp("follow"), INTERMISSION_HANDLERS=TOYS) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_left(server: Server) -> AsyncIterator[None]:
    """No test leaves a process, nor a watch on a file."""
    yield
    await nothing_left(server)

    async def unwatched() -> bool:
        return watches(server) == 0

    await until(unwatched)


@dataclass
class Teller:
    """A task that prints what it is given."""

    server: Server
    script: Path
    task_id: str = ""

    async def start(self) -> "Teller":
        """Have it run."""
        self.script.touch()
        self.task_id = await launched(self.server, "teller", {"path": str(self.script)})
        return self

    def say(self, text: str | bytes) -> None:
        """Have it print this."""
        with self.script.open("ab") as script:
            script.write(text.encode() if isinstance(text, str) else text)

    def end(self, how: str = "return") -> None:
        """Have it end when all is printed."""
        fresh = self.script.with_suffix(".new")
        fresh.write_text(how)
        fresh.rename(f"{self.script}.end")


@pytest_asyncio.fixture(loop_scope="module")
async def teller(server: Server, tmp_path: Path) -> Teller:
    """One that runs."""
    return await Teller(server, tmp_path / "script").start()


@dataclass
class Event:
    """One event, as the standard has a client dispatch it."""

    event: str
    data: str
    id: str


@dataclass
class Stream:
    """A client's connection."""

    response: aiohttp.ClientResponse
    comments: int = 0
    _id: str = ""
    _lines: list[str] = field(default_factory=list)

    async def next(self, within_s: float = 20) -> Event | None:
        """The next event; None when the stream is over."""
        event, data = "message", list[str]()
        async with asyncio.timeout(within_s):
            while raw := await self.response.content.readline():
                line = raw.decode().removesuffix("\n")
                assert "\r" not in line  # it would end a line here
                if not line:
                    if data:
                        return Event(event, "\n".join(data), self._id)
                    event = "message"
                    continue
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match name:
                    case "":
                        self.comments += 1
                    case "id":
                        self._id = value
                    case "event":
                        event = value
                    case "data":
                        data.append(value)
                    case _:
                        raise AssertionError(line)
        return None

    async def take(self, count: int) -> list[str]:
        """The data of so many events."""
        events = [await self.next() for _ in range(count)]
        return [event.data for event in events if event is not None]

    async def rest(self) -> list[Event]:
        """Every event until the stream is over."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@contextlib.asynccontextmanager
async def following(server: Server, task_id: str, query: str = "", last: str | None = None) -> AsyncIterator[Stream]:
    """A stream that is open."""
    assert server.session is not None
    headers = {} if last is None else {"Last-Event-ID": last}
    url = f"{server.url}/tasks/{task_id}/log?follow=1{query}"
    async with server.session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(None)) as response:
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        yield Stream(response)


def watches(server: Server) -> int:
    """Files that the server watches, over all its inotify instances."""
    found = 0
    for fd in Path(f"/proc/{server.pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found += fd.read_text().count("inotify wd:")
    return found


def end(event: Event | None, status: str, reason: str | None = None) -> None:
    """The last event must say this."""
    assert event is not None
    assert event.event == "end"
    assert json.loads(event.data) == {"status": status, "reason": reason}


async def test_what_there_is_and_what_comes(teller: Teller) -> None:
    """First the lines so far, then each as it is printed; a line without its end waits for it. Ids are offsets."""
    teller.say("one\ntwo\n")
    async with following(teller.server, teller.task_id) as stream:
        first, second = await stream.next(), await stream.next()
        assert first == Event("message", "one", "4")
        assert second == Event("message", "two", "8")
        teller.say("three\nfo")
        assert await stream.next() == Event("message", "three", "14")
        teller.say("ur\n")
        assert await stream.next() == Event("message", "four", "19")
        teller.say("the rest")
        teller.end()
        assert await stream.next() == Event("message", "the rest", "27")
        end(await stream.next(), "completed")
        assert await stream.next() is None
    assert await log(teller.server, teller.task_id) == "one\ntwo\nthree\nfour\nthe rest"


async def test_a_line_arrives_when_it_is_printed(teller: Teller) -> None:
    """Not at the next look of a clock: ten lines, one at a time, take less than a second together."""
    async with following(teller.server, teller.task_id) as stream:
        started = time.monotonic()
        for n in range(10):
            teller.say(f"{n}\n")
            assert await stream.take(1) == [str(n)]
        took_s = time.monotonic() - started
        print(f"{took_s * 100:.0f} ms a line")  # noqa: T201
        assert took_s < 5  # a look a second would need twice that
        teller.end()
        end(await stream.next(), "completed")


@pytest.mark.parametrize(("tail", "lines"), [(1, ["c"]), (2, ["b", "c"]), (9, ["a", "b", "c"])])
async def test_the_last_lines_only(teller: Teller, tail: int, lines: list[str]) -> None:
    """``tail`` says how many of the lines so far."""
    teller.say("a\nb\nc\n")
    await teller.server.until_progress(teller.task_id, 6)
    async with following(teller.server, teller.task_id, f"&tail={tail}") as stream:
        assert await stream.take(len(lines)) == lines
        teller.say("d\n")
        assert await stream.take(1) == ["d"]
    teller.say("e\n")  # the server notices that nobody listens


async def test_a_client_that_comes_back(teller: Teller) -> None:
    """Cut off anywhere and back with its last id, it misses nothing and gets nothing twice, whatever ``tail`` says."""
    heard, last = list[str](), None
    for n in range(12):
        teller.say(f"{3 * n}\n{3 * n + 1}\n{3 * n + 2}\n")
        async with following(teller.server, teller.task_id, "&tail=1" if n else "", last) as stream:
            for _ in range(1 + n % 4):
                if len(heard) < 3 * n + 3:
                    event = await stream.next()
                    assert event is not None
                    heard.append(event.data)
                    last = event.id
    teller.end()
    async with following(teller.server, teller.task_id, last=last) as stream:
        *events, final = await stream.rest()
    assert heard + [event.data for event in events] == [str(n) for n in range(36)]
    end(final, "completed")


async def test_lines_of_every_kind(teller: Teller) -> None:
    """Empty ones, bytes that are no text, carriage returns (which end a line of the protocol), and its own words."""
    teller.say(b"\n\nz\xc3\xa4h\xff\n10 %\r20 %\r\ndata: x\n: y\n\nid: 7\n \x00\xe2\x80\xa8\n")
    teller.end()
    async with following(teller.server, teller.task_id) as stream:
        *events, final = await stream.rest()
    assert [event.data for event in events] == [
        *("", "", "zäh\ufffd", "10 %\n20 %", "data: x", ": y", "", "id: 7", " \x00\u2028"),
    ]
    end(final, "completed")


async def test_a_line_without_end(teller: Teller) -> None:
    """A line of a megabyte comes in pieces, which are cut between characters and are the line when put together."""
    text = "zäh€𝄞" * 100_000
    teller.say(text)
    async with following(teller.server, teller.task_id) as stream:
        first = await stream.next()
        assert first is not None
        assert 10_000 < len(first.data.encode()) <= 16 << 10
        teller.end()
        *events, final = await stream.rest()
        end(final, "completed")
    assert first.data + "".join(event.data for event in events) == text
    assert int(events[-1].id) == len(text.encode())


async def _pause(teller: Teller) -> None:
    assert (await teller.server.verb(teller.task_id, "pause")).status == 200


async def _terminate(teller: Teller) -> None:
    assert (await teller.server.verb(teller.task_id, "terminate")).status == 200


async def _fail(teller: Teller) -> None:
    teller.end("raise")


@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [(_pause, "paused", "requested"), (_terminate, "terminated", None), (_fail, "failed", "exhausted")],
)
async def test_it_ends_when_the_task_rests(
    teller: Teller, act: Callable[[Teller], Any], status: str, reason: str | None
) -> None:
    """Whatever puts it to rest; the stream is over at once, after everything that was printed."""
    async with following(teller.server, teller.task_id) as stream:
        teller.say("a\n")
        assert await stream.take(1) == ["a"]
        await act(teller)
        *events, final = await stream.rest()
        end(final, status, reason)
        assert [event.data for event in events][:1] in ([], ["Traceback (most recent call last):"])


async def test_a_task_that_rests_already(teller: Teller) -> None:
    """All of it and the end, at once; and nothing of it twice for one that has been there."""
    teller.say("a\nb\n")
    teller.end()
    await teller.server.until_status(teller.task_id, "completed")
    async with following(teller.server, teller.task_id) as stream:
        a, b, final = await stream.rest()
        assert (a.data, b.data) == ("a", "b")
        end(final, "completed")
    async with following(teller.server, teller.task_id, last=b.id) as stream:
        (final,) = await stream.rest()
        end(final, "completed")


async def test_a_task_that_is_resumed(teller: Teller) -> None:
    """It goes on in the same log, from where the client was."""
    teller.say("a\n")
    async with following(teller.server, teller.task_id) as stream:
        assert await stream.take(1) == ["a"]
        await _pause(teller)
        (final,) = await stream.rest()
    await teller.server.verb(teller.task_id, "resume")
    async with following(teller.server, teller.task_id, last=final.id) as stream:
        teller.say("b\n")
        assert await stream.take(1) == ["b"]
        teller.end()
        end(await stream.next(), "completed")


async def test_a_task_that_has_not_begun(server: Server) -> None:
    """It is waited for: its first line is the first event."""
    task_id = await launched(server, "printer", {"n": 0}, delay_s=0.5)
    async with following(server, task_id) as stream:
        *events, final = await stream.rest()
        end(final, "completed")
    assert [event.data for event in events][:2] == ["from print", "from stderr"]


async def test_a_task_that_never_begins(server: Server) -> None:
    """Terminated while it waited: there is an end and nothing else."""
    task_id = await launched(server, "printer", {"n": 0}, delay_s=1000)
    async with following(server, task_id) as stream:
        await server.verb(task_id, "terminate")
        (final,) = await stream.rest()
        end(final, "terminated")


async def test_many_at_once(teller: Teller) -> None:
    """Each of thirty clients hears every line; those that leave in between do not disturb the others."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(following(teller.server, teller.task_id)) for _ in range(30)]
        for n in range(5):
            teller.say(f"{n}\n")
            assert await asyncio.gather(*(stream.take(1) for stream in streams)) == [[str(n)]] * len(streams)
            for stream in streams[20 - 2 * n :: 7]:
                stream.response.close()
                streams.remove(stream)
        assert len(streams) < 25
        teller.end()
        for stream in streams:
            end(await stream.next(), "completed")


async def test_waiting_costs_nothing(server: Server, tmp_path: Path) -> None:
    """Sixty clients of six silent tasks: the server wakes only to look at the size of each log."""
    tellers = [await Teller(server, tmp_path / f"script{n}").start() for n in range(6)]
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for teller in tellers:
            teller.say("a\n")
            streams += [await stack.enter_async_context(following(server, teller.task_id)) for _ in range(10)]
        for stream in streams:
            assert await stream.take(1) == ["a"]
        assert watches(server) == 6
        process = psutil.Process(server.pid)
        switches = process.num_ctx_switches().voluntary
        await asyncio.sleep(2)  # the time over which nothing is to happen
        woken = process.num_ctx_switches().voluntary - switches
        print(f"woken {woken} times in 2 s")  # noqa: T201
        assert woken < 60  # the size of each task's log is looked at once a second for its limit, whoever follows it
        for teller in tellers:
            teller.end()
        for stream in streams:
            end(await stream.next(), "completed")


async def test_a_slow_client_costs_no_memory(tmp_path: Path) -> None:
    """One that does not read while a task prints 40 MB: others are served, and in the end it has every line."""
    async with playing(tmp_path, INTERMISSION_HANDLERS=TOYS) as server:
        idle = await launched(server, "flooder", {"n": 100})
        await server.until_status(idle, "completed")
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        task_id = await launched(server, "flooder", {"n": 400_000})
        async with following(server, task_id) as stream:
            await server.until_status(task_id, "completed")
            for _ in range(20):
                assert (await server.ask("GET", "/health")).status == 200
            grown = process.memory_info().rss - before
            print(f"{grown >> 10} KiB more")  # noqa: T201
            assert grown < 16 << 20
            count = 0
            while (event := await stream.next()) is not None and event.event != "end":
                assert event.data.endswith(f"{count:09}")
                count += 1
            end(event, "completed")
            assert count == 400_000


async def test_a_word_now_and_then(teller: Teller) -> None:
    """A comment after 15 s of silence; it is no event. A client that has gone is noticed by it."""
    async with following(teller.server, teller.task_id) as stream, following(teller.server, teller.task_id) as gone:
        teller.say("a\n")
        assert await stream.take(1) == await gone.take(1) == ["a"]
        gone.response.close()
        started = time.monotonic()
        line = await asyncio.wait_for(stream.response.content.readline(), 20)
        assert line == b":\n"
        assert 14 < time.monotonic() - started < 19
        teller.end()
        end(await stream.next(), "completed")


async def test_when_the_server_stops(tmp_path: Path) -> None:
    """Streams are over with it, at once and without an end; the next server goes on from the last id."""
    async with playing(tmp_path / "var", INTERMISSION_HANDLERS=TOYS) as server:
        teller = await Teller(server, tmp_path / "script").start()
        never = await launched(server, "printer", {"n": 0}, delay_s=1000)
        teller.say("a\n")
        async with following(server, teller.task_id) as stream, following(server, never) as silent:
            event = await stream.next()
            assert event is not None
            started = time.monotonic()
            assert await server.stop() == 0
            assert time.monotonic() - started < 5
            assert await stream.rest() == await silent.rest() == []
        await server.start()
        teller.say("b\n")
        async with following(server, teller.task_id, last=event.id) as stream:
            assert await stream.take(1) == ["b"]
            teller.end()
            end(await stream.next(), "completed")
        await server.verb(never, "terminate")


async def test_a_slow_client_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    """One that does not read, with megabytes to come."""
    async with serving(tmp_path, INTERMISSION_HANDLERS=TOYS) as server:
        task_id = await launched(server, "flooder", {"n": 400_000})
        async with following(server, task_id):
            await server.until_status(task_id, "completed")
            started = time.monotonic()
            assert await server.stop() == 0
            assert time.monotonic() - started < 5


async def test_a_lost_server(tmp_path: Path) -> None:
    """``kill -9``: the client comes back with its last id, and the task goes on in the same log."""
    async with serving(tmp_path / "var", INTERMISSION_HANDLERS=TOYS) as server:
        teller = await Teller(server, tmp_path / "script").start()
        teller.say("a\n")
        async with following(server, teller.task_id) as stream:
            event = await stream.next()
            assert event is not None
            await server.until_progress(teller.task_id, 2)
            await server.kill()
            with contextlib.suppress(aiohttp.ClientError):
                assert await stream.next() is None
        await server.start()
        async with following(server, teller.task_id, last=event.id) as stream:
            teller.say("b\n")
            teller.end()
            *events, final = await stream.rest()
            assert [event.data for event in events] == ["b"]
            end(final, "completed")


async def test_head(teller: Teller) -> None:
    """The head alone, and at once."""
    answer = await asyncio.wait_for(teller.server.ask("HEAD", f"/tasks/{teller.task_id}/log?follow=1"), 5)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/event-stream", b"")


@pytest.mark.parametrize("last", ["", "x", "-1", "1.5", "9" * 19, "\u0663"])
async def test_a_last_id_that_is_none(teller: Teller, last: str) -> None:
    """422, before anything is sent, and whether the log is followed or not."""
    url = f"/tasks/{teller.task_id}/log?follow={int(last > '1')}"
    said = problem(await teller.server.ask("GET", url, headers={"Last-Event-ID": last}), 422, "invalid")
    assert pointers(said) == {"Last-Event-ID"}


@pytest.mark.parametrize("follow", ["2", "true", "", "-1"])
async def test_a_query_that_does_not_fit(teller: Teller, follow: str) -> None:
    """``follow`` is 1 or 0."""
    said = problem(await teller.server.ask("GET", f"/tasks/{teller.task_id}/log?follow={follow}"), 422, "invalid")
    assert pointers(said) == {"follow"}
    answer = await teller.server.ask("GET", f"/tasks/{teller.task_id}/log?follow=0")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_of_a_task_that_there_is_not(server: Server) -> None:
    """404 and 410 are answered as such."""
    unknown = "01900000-0000-7000-8000-000000000000"
    problem(await server.ask("GET", f"/tasks/{unknown}/log?follow=1"), 404, "unknown-task")
    task_id = await server.launch("printer", {"n": 0})
    await server.until_status(task_id, "completed")
    await server.ask("DELETE", f"/tasks/{task_id}")
    problem(await server.ask("GET", f"/tasks/{task_id}/log?follow=1"), 410, "gone")


async def test_no_symlink_is_followed(teller: Teller, tmp_path: Path) -> None:
    """A handler's mistake or trick with its log leads to no other file: the stream breaks off."""
    path = teller.server.data / "tasks" / teller.task_id / "log"
    teller.say("a\n")
    await teller.server.until_progress(teller.task_id, 2)
    os.rename(path, tmp_path / "log")
    path.symlink_to("/etc/passwd")
    async with following(teller.server, teller.task_id) as stream:
        assert await stream.rest() == []
