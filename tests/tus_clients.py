"""Real clients of tus, each in a process of its own: ``python tus_clients.py tuspy URL FILE``."""

import asyncio
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


if __name__ == "__main__":
    _, name, address, path = sys.argv
    {"tuspy": tuspy, "aiotus": with_aiotus}[name](address, Path(path))
