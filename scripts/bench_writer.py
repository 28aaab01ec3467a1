"""The least that an aiohttp server can do with a body: write it to a file in the folder. Prints its port."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web

FOLDER = Path(sys.argv[1])


async def put(request: web.Request) -> web.Response:
    """Write what comes, as it comes."""
    with (FOLDER / request.path[1:]).open("wb", buffering=0) as file:
        async for block in request.content.iter_any():
            file.write(block)
    return web.Response(status=201)


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_put("/{name}", put)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
