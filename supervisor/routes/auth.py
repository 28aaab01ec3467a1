"""Bearer tokens: JSON Web Tokens signed with the configured secret (RFC 6750, RFC 7519)."""

from collections.abc import Callable
from typing import Any, Final

import jwt
from aiohttp import web

from intermission.supervisor.routes.guard import LOCAL, Caller
from intermission.supervisor.routes.problems import Problem

_ALGORITHM: Final = "HS256"
_MAX_USER: Final = 256
_PUBLIC: Final = frozenset({"/health", "/health/ready"})


def bearer(secret: str) -> Callable[[web.Request], Caller]:
    """Identifies callers by their token: ``sub`` is the user, ``admin`` in ``scope`` makes an administrator."""

    def identify(request: web.Request) -> Caller:
        if request.path in _PUBLIC:
            return LOCAL
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _refused("send Authorization: Bearer and a token", code=None)
        try:
            # Named, not taken from the token: a token that says `alg: none` or another's algorithm is refused.
            claims = jwt.decode(token.strip(), secret, algorithms=[_ALGORITHM], options={"require": ["sub"]})
        except jwt.ExpiredSignatureError:
            raise _refused("the token has expired; get a new one") from None
        except UnicodeError:  # bytes beyond ASCII arrive as lone surrogates
            raise _refused("the token is not valid: it is not ASCII") from None
        except jwt.InvalidTokenError as error:
            raise _refused(f"the token is not valid: {error}") from None
        return _caller(claims)

    return identify


def _caller(claims: dict[str, Any]) -> Caller:
    user, scope = claims["sub"], claims.get("scope", "")
    if not isinstance(user, str) or not user.isprintable() or not 0 < len(user) <= _MAX_USER:
        raise _refused(f"the token's sub must be a printable string of 1 to {_MAX_USER} characters")
    return Caller(user, admin=isinstance(scope, str) and "admin" in scope.split())


def _refused(detail: str, code: str | None = "invalid_token") -> Problem:
    # RFC 6750, section 3.1: no error code where no credentials were sent.
    challenge = "Bearer" if code is None else f'Bearer error="{code}"'
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})
