"""The page at ``/upload``, as somebody with a browser uses it."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from browsing import browsing, needs_chromium, visiting
from harness import Server, problem, until
from line import Line
from playwright.async_api import Browser, Locator, Page, Route
from upload_tools import MIB, data, flowing, newest, sha256
from verb_tools import attempts, nothing_left, playing, strays, tasks

from intermission.supervisor import tokens

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

SECRET: Final = "a secret of the tests, thirty-two bytes and more"
TOKEN: Final = tokens.sign(SECRET, "anna", admin=False, now=time.time(), life_s=3600)
HOSTILE: Final = "<img src=x onerror=alert(1)> \u202egpj.html"
SIZE: Final = 6 * MIB + 4321
SLOW_S: Final = 0.02


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all."""
    async with browsing() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One for all that do not need their own."""
    async with playing(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def line(server: Server) -> AsyncIterator[Line]:
    """The way there, slow until a test has seen enough. Behind it nothing is left."""
    async with Line(server).open() as opened:
        opened.pace_s = SLOW_S
        yield opened
    for task in await tasks(server, "paused"):  # or the next test's page would list it
        await server.verb(task["id"], "terminate")
    await nothing_left(server)


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, line: Line) -> AsyncIterator[Page]:
    """The page, over the line."""
    async with visiting(browser, f"{line.url}/upload") as opened:
        opened.set_default_timeout(20_000)
        yield opened


def file(folder: Path, name: str = "flights.bin", size: int = SIZE, seed: int = 1) -> Path:
    """One to be uploaded."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data(size, seed))
    return path


async def choose(page: Page, *files: Path) -> None:
    """Choose files in the field at the top."""
    await page.get_by_label("Choose files").set_input_files(files)


def row(page: Page, name: str, state: str = "") -> Locator:
    """A file's, in a state."""
    in_state = f'[data-state="{state}"]' if state else ""
    return page.locator(f"#uploads > li{in_state}", has=page.get_by_role("heading", name=name, exact=True))


def button(page: Page, verb: str, name: str = "flights.bin") -> Locator:
    """A file's."""
    return page.get_by_role("button", name=f"{verb}: {name}", exact=True)


async def begun(page: Page, server: Server, path: Path) -> str:
    """The id of an upload that is under way on the page."""
    before = await newest(server)
    await choose(page, path)
    await row(page, path.name, "going").wait_for()

    async def there() -> bool:
        return await newest(server) != before

    await until(there)
    task_id = await newest(server)
    await server.until_progress(task_id)
    return task_id


async def complete(page: Page, server: Server, task_id: str, content: bytes, name: str = "flights.bin") -> None:
    """Assert that an upload comes to its end, that the page says so, and that what is there is what was chosen."""
    done = row(page, name, "done")
    await done.wait_for()
    assert await done.locator("code").inner_text() == sha256(content)
    task = await server.task(task_id)
    assert (task["status"], task["result"]["sha256"]) == ("completed", sha256(content))
    assert await server.file(task_id, "content") == content


async def test_the_page_itself(server: Server) -> None:
    """It refers to its own files only, each of which is there, and a browser is told to load nothing else."""
    answer = await server.ask("GET", "/upload")
    text = answer.body.decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html")
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(named) == 4
    for path in ("", *(f"/{name.removeprefix('upload/')}" for name in named)):
        answer = await server.ask("GET", f"/upload{path}")
        assert answer.status == 200, path
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["img-src"] == "'self'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "<style" not in text
    assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=|style=", text)
    problem(await server.exactly("GET /upload/page/..%2fdocs.py"), 404, "not-found")
    problem(await server.exactly("GET /upload/page/upload.html"), 404, "not-found")


async def test_several_files(page: Page, line: Line, server: Server, tmp_path: Path) -> None:
    """Three at once, the others wait; what a file is called is nothing but text; each ends with its SHA-256."""
    files = [file(tmp_path, name, SIZE + n, n) for n, name in enumerate(("a", "b", "c", "d.csv", HOSTILE))]
    line.pace_s = 20 * SLOW_S  # or on a busy machine the first have ended before anybody has looked at three
    await choose(page, *files)
    shown = HOSTILE.replace("\u202e", "\ufffd")
    await row(page, shown, "waiting").wait_for()

    async def three_grow() -> bool:
        return (
            sum([0 < await bar.evaluate("(bar) => bar.value") < 1 for bar in await page.locator("progress").all()]) == 3
        )

    await until(three_grow)
    assert [await page.locator(f"[data-state={state}]").count() for state in ("going", "waiting")] == [3, 2]
    figures = await row(page, "a").locator(".figures").inner_text()
    assert re.fullmatch(r"[\d.]+ [kM]B of 6\.3 MB · \d+ %\s+[\d.]+ [kM]B/s · \d+ s left", figures)
    line.pace_s = 0
    for path in files:
        name = shown if path.name == HOSTILE else path.name
        await row(page, name, "done").wait_for()
        assert await row(page, name).locator("code").inner_text() == sha256(path.read_bytes())
        async with page.expect_download() as downloading:
            await row(page, name).get_by_role("link", name="Download").click()
        download = await downloading.value
        assert Path(await download.path()).read_bytes() == path.read_bytes()
        if path.name != HOSTILE:
            assert download.suggested_filename == path.name
    assert (
        await page.locator("#uploads *").evaluate_all("all => all.some((one) => one.matches('img, script'))") is False
    )
    named = {(await server.task(task["id"]))["result"]["filename"] for task in (await tasks(server, "completed"))[:5]}
    assert named == {path.name for path in files}
    await button(page, "Delete", "a").click()
    await row(page, "a").wait_for(state="detached")


async def test_pause_and_resume(page: Page, line: Line, server: Server, tmp_path: Path) -> None:
    """Paused, the server has it as asked for, without a process and without a byte more; resumed, it ends identical.

    The keyboard is enough for both.
    """
    path = file(tmp_path)
    task_id = await begun(page, server, path)
    await button(page, "Pause").focus()
    await page.keyboard.press("Enter")
    await row(page, path.name, "paused").wait_for()
    task = await server.task(task_id)
    assert (task["status"], task["reason"], task["child"]) == ("paused", "requested", None)
    assert 0 < task["progress"]["done"] < SIZE
    assert strays(server) == []
    shown = await row(page, path.name).locator("progress").evaluate("(bar) => bar.value")
    assert shown == pytest.approx(task["progress"]["done"] / SIZE)
    line.pace_s = 0
    assert await button(page, "Resume").evaluate("(button) => button === document.activeElement")
    await page.keyboard.press("Enter")
    await complete(page, server, task_id, path.read_bytes())
    assert len(await attempts(server, task_id)) == 2


async def test_a_pause_by_somebody_else(page: Page, line: Line, server: Server, tmp_path: Path) -> None:
    """Is shown, and holds: the page sends nothing until its user resumes it."""
    path = file(tmp_path)
    task_id = await begun(page, server, path)
    assert (await server.verb(task_id, "pause")).json["reason"] == "requested"
    await row(page, path.name, "paused").wait_for()
    refused = line.statuses.count(b"423")
    await choose(page, other := file(tmp_path, "other.bin", 3))  # something happens, and goes its whole way
    await row(page, other.name, "done").wait_for()
    assert (await server.task(task_id))["reason"] == "requested"
    assert (line.statuses.count(b"423"), len(await attempts(server, task_id))) == (refused, 1)
    line.pace_s = 0
    await button(page, "Resume").click()
    await complete(page, server, task_id, path.read_bytes())


@pytest.mark.parametrize("held", [False, True], ids=["under way", "paused"])
async def test_a_reload(page: Page, line: Line, server: Server, tmp_path: Path, *, held: bool) -> None:
    """What was unfinished is there again, and goes on with the same file: no other of its name."""
    path = file(tmp_path)
    task_id = await begun(page, server, path)
    if held:
        await button(page, "Pause").click()
        await row(page, path.name, "paused").wait_for()
    await page.reload()
    listed = row(page, path.name, "paused" if held else "absent")
    await listed.wait_for()
    assert 0 < await listed.locator("progress").evaluate("(bar) => bar.value") < 1
    wrong = file(tmp_path / "elsewhere", size=SIZE - 1)
    for chosen in (wrong, path):
        async with page.expect_file_chooser() as choosing:
            await button(page, "Choose the file again").click()
        await (await choosing.value).set_files(chosen)
        if chosen is wrong:
            await listed.get_by_text("This is not the file that was begun").wait_for()
    line.pace_s = 0
    if held:
        await button(page, "Choose the file again").wait_for(state="hidden")
        assert (await server.task(task_id))["reason"] == "requested"
        await button(page, "Resume").click()
    await complete(page, server, task_id, path.read_bytes())
    assert await newest(server) == task_id


async def test_the_same_name_and_size_is_not_the_same_file(
    page: Page, line: Line, server: Server, tmp_path: Path
) -> None:
    """One of another date is another upload; neither gets a byte of the other."""
    path = file(tmp_path)
    task_id = await begun(page, server, path)
    await page.reload()
    await row(page, path.name, "absent").wait_for()
    other = file(tmp_path / "other", seed=2)
    line.pace_s = 0
    await choose(page, other)
    await row(page, path.name, "done").wait_for()
    assert await newest(server) != task_id
    await choose(page, path)
    await row(page, path.name, "done").nth(1).wait_for()
    for one, chosen in ((task_id, path), (await newest(server), other)):
        assert await server.file(one, "content") == chosen.read_bytes()


async def test_cancel(page: Page, server: Server, tmp_path: Path) -> None:
    """Nothing is left of it here or there, and who works by keyboard is not lost."""
    task_id = await begun(page, server, file(tmp_path))
    await button(page, "Cancel").click()
    await row(page, "flights.bin").wait_for(state="detached")
    assert await page.get_by_role("status").inner_text() == "flights.bin was cancelled."
    problem(await server.ask("GET", f"/tasks/{task_id}"), 410, "gone")
    assert not (server.data / "tasks" / task_id).exists()
    assert await page.locator("#files").evaluate("(field) => field === document.activeElement")


async def test_a_file_that_changes_meanwhile(page: Page, server: Server, tmp_path: Path) -> None:
    """Is not mixed with what it was: the page says so and waits for the file as it was."""
    path = file(tmp_path)
    task_id = await begun(page, server, path)
    await button(page, "Pause").click()
    await row(page, path.name, "paused").wait_for()
    path.write_bytes(data(SIZE + 1, 2))
    await button(page, "Resume").click()
    await row(page, path.name, "absent").get_by_text("has been changed or moved").wait_for()
    assert (await server.task(task_id))["status"] == "paused"


async def test_dropped_files(page: Page, line: Line, server: Server) -> None:
    """Come as chosen ones do, though the page does not know yet what there is; an empty one is complete at once."""
    line.pace_s = 0
    known = asyncio.Event()

    async def later(route: Route) -> None:
        await known.wait()
        await route.continue_()

    await page.route(re.compile("/upload/status"), later)
    await page.reload()
    dropped = await page.evaluate_handle(
        """() => {
            const carried = new DataTransfer();
            carried.items.add(new File(["abc"], "dropped.txt", { type: "text/plain" }));
            carried.items.add(new File([], "empty"));
            return carried;
        }"""
    )
    await page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    known.set()
    for name, content in (("dropped.txt", b"abc"), ("empty", b"")):
        await row(page, name, "done").wait_for()
        assert await row(page, name).locator("code").inner_text() == sha256(content)
    assert await tasks(server, "running", "paused") == []


async def test_what_comes_from_elsewhere(page: Page, server: Server) -> None:
    """An upload that another client brings is shown as that, and how it ends."""
    content = data(MIB)
    sending, _ = await flowing(server, content, MIB // 2, query="?filename=theirs.bin")
    await page.reload()
    theirs = row(page, "theirs.bin", "elsewhere")
    await theirs.wait_for()
    assert await theirs.locator("progress").evaluate("(bar) => bar.value") == 0.5
    await sending.send(content[MIB // 2 :])
    assert (await sending.answer()).status == 201
    await row(page, "theirs.bin", "done").wait_for()


async def test_what_is_refused(browser: Browser, tmp_path: Path) -> None:
    """Is told in the server's own words; the others come all the same."""
    async with (
        playing(tmp_path / "var", INTERMISSION_MAX_UPLOAD_BYTES="1000") as server,
        visiting(browser, f"{server.url}/upload") as page,
    ):
        await choose(page, file(tmp_path, "large", 1001), file(tmp_path, "small", 1000))
        await row(page, "large", "failed").get_by_text("at most 1000 bytes are taken").wait_for()
        await row(page, "small", "done").wait_for()
        await button(page, "Cancel", "large").click()
        await row(page, "large").wait_for(state="detached")


async def test_disturbed(browser: Browser, tmp_path: Path) -> None:
    """Cut off, and with the server killed and started again, it goes on by itself and ends identical."""
    path = file(tmp_path)
    async with playing(tmp_path / "var") as server, Line(server).open() as line:
        line.pace_s = SLOW_S
        async with visiting(browser, f"{line.url}/upload") as page:
            task_id = await begun(page, server, path)
            line.cut()
            await server.until_progress(task_id, 2 * MIB)
            await server.kill()
            await row(page, path.name, "again").wait_for()
            await server.start()
            line.pace_s = 0
            await complete(page, server, task_id, path.read_bytes())
            assert await newest(server) == task_id


async def test_with_a_secret(browser: Browser, tmp_path: Path) -> None:
    """The page asks for a token, keeps it in this tab alone, and then works as without; it downloads, too."""
    path = file(tmp_path, size=100_000)
    async with (
        playing(tmp_path / "var", INTERMISSION_JWT_SECRET=SECRET) as server,
        visiting(browser, f"{server.url}/upload") as page,
    ):
        await page.locator("#token").wait_for()
        assert await page.locator("main").is_hidden()
        for token in ("nonsense", TOKEN):
            await page.get_by_label("This server answers to tokens only").fill(token)
            await page.get_by_role("button", name="Go on").click()
            await page.wait_for_selector("main" if token is TOKEN else "#token output:not(:empty)")
        await choose(page, path)
        await row(page, path.name, "done").wait_for()
        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="Download").click()
        download = await downloading.value
        assert download.suggested_filename == path.name
        assert Path(await download.path()).read_bytes() == path.read_bytes()
        await page.reload()
        await page.wait_for_selector("main")
        assert await page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        server.session.headers["Authorization"] = f"Bearer {TOKEN}"  # type: ignore[union-attr]
        assert [task["user"] for task in await tasks(server)] == ["anna"]
