"""The stores that the contract is asked of."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from samples import MakeStore

from intermission.state.sqlite import SqliteStore
from intermission.state.store import Store


@pytest.fixture(params=["sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Makes stores on the same data."""
    makers: dict[str, MakeStore] = {"sqlite": lambda: SqliteStore(tmp_path / "intermission.db")}
    return makers[request.param]


@pytest.fixture
async def store(make_store: MakeStore) -> AsyncIterator[Store]:
    """An open store, empty."""
    opened = make_store()
    await opened.open()
    yield opened
    await opened.close()
