"""Who has a bearer token (RFC 6750) may ask; only what tells nothing is there for everybody."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from intermission.supervisor import tokens
from intermission.supervisor.routes import docs, ops, upload_page
from intermission.supervisor.routes.guard import LOCAL, Caller
from intermission.supervisor.routes.problems import Problem

PUBLIC: Final = ops.PUBLIC | docs.PAGE.public | upload_page.PAGE.public


def bearer(secret: str) -> Callable[[web.Request], Caller]:
    """Identifies callers by their token: ``sub`` is the user, ``admin`` in ``scope`` makes an administrator."""

    def identify(request: web.Request) -> Caller:
        if request.path in PUBLIC:
            return LOCAL
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _refused("send Authorization: Bearer and a token", code=None)
        try:
            claims = tokens.read(secret, token.strip())
        except tokens.TokenError as error:
            raise _refused(str(error)) from None
        return Caller(claims.user, admin=claims.admin)

    return identify


def _refused(detail: str, code: str | None = "invalid_token") -> Problem:
    # RFC 6750, section 3.1: no error code where no credentials were sent.
    challenge = "Bearer" if code is None else f'Bearer error="{code}"'
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})
