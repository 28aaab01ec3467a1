"""A clock that jumps, held against one that does not."""

import asyncio
import time
from pathlib import Path
from typing import Final

from harness import serving

from intermission.supervisor.steady import SteadyClock

DAY_S: Final = 86_400.0
MINUTE_S: Final = 60.0


class Clocks:
    """Both clocks, and what is made of them."""

    def __init__(self) -> None:
        self.boot = 1000.0
        self.ahead = 0.0
        """How far the wall's clock is from the truth."""
        self.steady = SteadyClock(lambda: self.boot + 1e9 + self.ahead, lambda: self.boot)

    def later(self, seconds: float) -> float:
        """How far the steady clock is from the truth then; it is asked once a minute."""
        while seconds > 0:
            self.boot += min(seconds, MINUTE_S)
            seconds -= MINUTE_S
            self.steady.now()
        return self.steady.now() - self.boot - 1e9


def test_a_clock_that_goes_right() -> None:
    """Is what it says, also when it is corrected little by little."""
    clocks = Clocks()
    assert clocks.later(DAY_S) == 0
    for _ in range(5):
        clocks.ahead += 50
        assert clocks.later(MINUTE_S) == clocks.ahead


def test_a_jump_forward_that_does_not_last() -> None:
    """Was none, however far, and however often it comes."""
    clocks = Clocks()
    for _ in range(3):
        clocks.ahead = 40 * DAY_S
        assert clocks.later(59 * MINUTE_S) == 0
        clocks.ahead = 0
        assert clocks.later(MINUTE_S) == 0


def test_a_jump_forward_that_lasts() -> None:
    """Is believed after an hour: the machine had been set wrong before."""
    clocks = Clocks()
    clocks.ahead = 40 * DAY_S
    assert clocks.later(MINUTE_S) == 0
    assert clocks.later(59 * MINUTE_S) == 0
    assert clocks.later(2 * MINUTE_S) == 40 * DAY_S
    assert clocks.later(DAY_S) == 40 * DAY_S


def test_a_clock_that_goes_on_jumping() -> None:
    """Is not believed before it has come to rest."""
    clocks = Clocks()
    for _ in range(5):
        clocks.ahead += 10 * DAY_S
        assert clocks.later(40 * MINUTE_S) == 0
    assert clocks.later(30 * MINUTE_S) == 50 * DAY_S


def test_a_jump_back() -> None:
    """Is believed at once."""
    clocks = Clocks()
    clocks.ahead = -40 * DAY_S
    assert clocks.later(0) == -40 * DAY_S


async def test_nothing_expires_by_a_jump(tmp_path: Path) -> None:
    """What is due by the time that has passed goes; what is due by the clock's jump alone stays; the log says why."""
    jump = tmp_path / "jump"
    settings = {
        "INTERMISSION_HANDLERS": "toys,jumping_clock",
        "INTERMISSION_RETENTION_DAYS": f"{6 / DAY_S:.12f}",
        "INTERMISSION_UPLOAD_EXPIRES_DAYS": "7",
        "TOYS_CLOCK_JUMP": str(jump),
    }
    async with serving(tmp_path / "var", **settings) as server:
        old = await server.launch("counter", {"limit": 1})
        await server.until_status(old, "completed")
        await asyncio.sleep(3)  # the age of the one is not that of the other
        made = await server.ask("POST", "/upload/start", headers={"Upload-Length": "10"})
        upload = made.json["id"]
        young = await server.launch("counter", {"limit": 1})
        await server.until_status(young, "completed")
        asked = time.monotonic()
        jump.write_text(str(40 * DAY_S))
        await server.until(old, lambda task: task["status"] == 410)
        assert time.monotonic() - asked < 6, "too slow to tell"
        assert (await server.task(young))["status"] == "completed"
        assert (await server.task(upload))["status"] == "paused"
        assert any("the clock has jumped forward" in line for line in server.log)
        await server.until(young, lambda task: task["status"] == 410)
        assert (await server.task(upload))["status"] == "paused"
        assert await server.stop() == 0
