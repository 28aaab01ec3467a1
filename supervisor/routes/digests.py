"""What clients say that the data comes to (RFC 9530)."""

import base64
import binascii
import contextlib
import re
from typing import Final

from aiohttp import web

from intermission.supervisor.routes.problems import Problem

_SHA256: Final = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,]*)", re.IGNORECASE)


def announced(request: web.Request) -> str | None:
    """The SHA-256 that the client announces (RFC 9530), in hexadecimal. Raises `Problem` (400)."""
    match = _SHA256.search(",".join(request.headers.getall("Repr-Digest", [])))
    if match is None:
        return None
    text = match[1].strip()
    digest = b""
    with contextlib.suppress(binascii.Error, ValueError):
        digest = base64.b64decode(text.strip(":"), validate=True)
    if len(digest) != 32 or not (text.startswith(":") and text.endswith(":")):  # noqa: PLR2004 -- SHA-256 has so many
        detail = "the sha-256 of Repr-Digest must be 32 bytes in base64 between two colons"
        raise Problem(400, "malformed-header", detail)
    return digest.hex()
