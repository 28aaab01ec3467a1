"""Pages of other origins that may upload: those that the operator lists, and nothing but uploads (Fetch, section 3.2).

No credentials are ever shared: a token is sent by the page itself, and a cookie would mean nothing here.
"""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

ORIGINS: Final = web.AppKey("origins", frozenset[str])
_UPLOADS: Final = "/upload/"
_METHODS: Final = "POST, HEAD, PATCH, DELETE, OPTIONS, GET"
_ALLOWED: Final = (
    "Authorization, Content-Type, Content-Disposition, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata, "
    "Upload-Defer-Length, Upload-Concat, Upload-Checksum, X-HTTP-Method-Override, X-Requested-With, X-Request-ID, "
    "Upload-Complete, Upload-Draft-Interop-Version, Repr-Digest, Content-Digest, Want-Repr-Digest, Prefer, "
    "Idempotency-Key"
)
_EXPOSED: Final = (
    "Upload-Offset, Location, Upload-Length, Tus-Version, Tus-Resumable, Tus-Max-Size, Tus-Extension, "
    "Tus-Checksum-Algorithm, Upload-Metadata, Upload-Defer-Length, Upload-Concat, Upload-Expires, Upload-Complete, "
    "Upload-Limit, Accept-Patch, Repr-Digest, Want-Repr-Digest, Want-Content-Digest, Idempotency-Replayed, "
    "Preference-Applied, Allow, Accept-Encoding, Retry-After, WWW-Authenticate"
)
_MAX_AGE_S: Final = 86_400


def admitted(request: web.Request) -> str | None:
    """The origin that a request comes from, if it may have come from there."""
    origin = request.headers.get("Origin", "")
    is_listed = origin.lower() in request.app[ORIGINS] and request.path.startswith(_UPLOADS)
    return origin if is_listed else None


@web.middleware
async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell a browser what a listed origin's page may send, before anybody asks who its user is."""
    if request.method != "OPTIONS" or admitted(request) is None:
        return await handler(request)
    if "Access-Control-Request-Method" not in request.headers:
        return await handler(request)
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": _ALLOWED,
        "Access-Control-Max-Age": str(_MAX_AGE_S),
    }
    return web.Response(status=204, headers=headers)


async def expose(request: web.Request, response: web.StreamResponse) -> None:
    """Let a listed origin's page read an answer, be it an error."""
    if not (request.app[ORIGINS] and request.path.startswith(_UPLOADS)):
        return
    response.headers.add("Vary", "Origin")
    if (origin := admitted(request)) is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
