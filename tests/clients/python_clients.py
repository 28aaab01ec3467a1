"""Real clients of tus, each in a process of its own: ``python python_clients.py tuspy URL FILE``."""

import asyncio
import io
import sys
from pathlib import Path

import aiotus
from tusclient.client import TusClient

TRIES = 200
WAIT_S = 0.1
CHUNK_BYTES = 1 << 20


def tuspy(url: str, file: Path) -> None:
    """It sends a SHA-1 with each chunk."""
    uploader = TusClient(url).uploader(
        str(file),
        chunk_size=CHUNK_BYTES,
        metadata={"filename": file.name},
        upload_checksum=True,
        retries=TRIES,
        retry_delay=WAIT_S,
    )
    uploader.upload()


def with_aiotus(url: str, file: Path) -> None:
    """It sends none."""
    config = aiotus.RetryConfiguration(retry_attempts=TRIES, max_retry_period_seconds=WAIT_S)
    with file.open("rb") as opened:
        location = asyncio.run(aiotus.upload(url, opened, {"filename": file.name.encode()}, config=config))
    if location is None:
        sys.exit(1)


def aiotus_in_parts(url: str, file: Path) -> None:
    """It sends three parts at the same time, and has them joined."""
    content = file.read_bytes()
    size = len(content) // 3 + 1
    parts = [io.BytesIO(content[at : at + size]) for at in range(0, len(content), size)]
    config = aiotus.RetryConfiguration(retry_attempts=TRIES, max_retry_period_seconds=WAIT_S)
    location = asyncio.run(aiotus.upload_multiple(url, parts, {"filename": file.name.encode()}, config=config))
    if location is None:
        sys.exit(1)


if __name__ == "__main__":
    _, name, address, path = sys.argv
    {"tuspy": tuspy, "aiotus": with_aiotus, "aiotus in parts": aiotus_in_parts}[name](address, Path(path))
