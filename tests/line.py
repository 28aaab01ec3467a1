"""The way from a client to the server, wherever that listens by now: as fast as a network, and it can be cut."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from harness import Server

PACE_S = 0.003
"""How long a block takes to the server, so that there is a middle to disturb."""
BLOCK_BYTES = 1 << 16


class Line:
    """A way to a server, which may be another process by the next connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pairs: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.url = ""
        self.pace_s = PACE_S
        self.statuses: list[bytes] = []
        """Of all answers."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Line"]:
        """For as long as the block lasts."""
        at = socket.create_server(("127.0.0.1", 0))
        at.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK_BYTES)  # or megabytes are on the way at once
        listening = await asyncio.start_server(self._connected, sock=at)
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            listening.close()
            self.cut()
            await asyncio.gather(*self._carrying, return_exceptions=True)
            await listening.wait_closed()

    def cut(self) -> None:
        """Without a word to either side."""
        for writer in self._pairs:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._server.url.removeprefix("http://").rpartition(":")
        self._pairs.add(writer)
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:  # it is down
            writer.transport.abort()
            return
        self._pairs.add(back)
        ways = [asyncio.create_task(self._carry(*way)) for way in ((reader, back, True), (there, writer, False))]
        self._carrying |= set(ways)
        await asyncio.wait(ways)
        self._pairs -= {writer, back}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upwards: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(BLOCK_BYTES):
                if block.startswith(b"HTTP/1.1 "):
                    self.statuses.append(block[9:12])
                writer.write(block)
                await writer.drain()
                await asyncio.sleep(self.pace_s if upwards else 0)
        writer.close()
