"""Many clients that send at the pace of a network, in one process: prints how many of them ended identical.

``bench_slow.py PORT COUNT BYTES_PER_S SECONDS``
"""

import asyncio
import hashlib
import json
import os
import sys
import time

PORT, COUNT, RATE, SECONDS = (int(argument) for argument in sys.argv[1:])
PART = 16 << 10


async def send(content: bytes, digest: str) -> bool:
    """One upload; whether the server has what was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    head = (
        f"POST /upload/start HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode())
    begun = time.monotonic()
    for at in range(0, len(content), PART):
        writer.write(content[at : at + PART])
        await writer.drain()
        await asyncio.sleep(max(0.0, begun + (at + PART) / RATE - time.monotonic()))
    answer = await reader.read()
    writer.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head.startswith("HTTP/1.1 201 ") and json.loads(body)["result"]["sha256"] == digest


async def main() -> None:
    """All at once."""
    content = os.urandom(RATE * SECONDS)
    digest = hashlib.sha256(content).hexdigest()
    print(sum(await asyncio.gather(*(send(content, digest) for _ in range(COUNT)))))


asyncio.run(main())
