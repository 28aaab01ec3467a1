"""Bearer tokens, made and read: JSON Web Tokens (RFC 7519), signed by HS256 with the one configured secret."""

from dataclasses import dataclass
from typing import Any, Final

import jwt

ALGORITHM: Final = "HS256"
ADMIN: Final = "admin"
MAX_USER: Final = 256
_REQUIRED: Final = ["exp", "sub"]  # a token without an end could never be taken back, but with the secret


class TokenError(Exception):
    """A token cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says that counts here."""

    user: str
    admin: bool


def sign(secret: str, user: str, *, admin: bool, now: float, life_s: float) -> str:
    """A token for a user. Raises `TokenError` for one that no server would take."""
    _refuse_odd(user)
    claims: dict[str, Any] = {"sub": user, "iat": int(now), "exp": int(now + life_s)}
    return jwt.encode(claims | ({"scope": ADMIN} if admin else {}), secret, algorithm=ALGORITHM)


def read(secret: str, token: str) -> Claims:
    """What a token says. Raises `TokenError` for one that was not signed with this secret, or is not valid now.

    There is no leeway. ``exp`` and ``nbf`` are what the issuer wrote, to the second: whoever's clock is wrong gets a
    401, which says so, and another token. ``iat`` is left aside: it is no rule (RFC 7519, section 4.1.6), and with it
    a token from a machine whose clock is a second ahead would be refused for that second.
    """
    try:
        # Named, not taken from the token: a token that says `alg: none` or another's algorithm is refused.
        claims = jwt.decode(
            token, secret, algorithms=[ALGORITHM], options={"require": _REQUIRED, "verify_iat": False}, leeway=0
        )
    except jwt.ExpiredSignatureError:
        raise TokenError("the token has expired; get a new one") from None
    except UnicodeError:  # bytes beyond ASCII arrive as lone surrogates
        raise TokenError("the token is not valid: it is not ASCII") from None
    except jwt.InvalidTokenError as error:
        raise TokenError(f"the token is not valid: {error}") from None
    user, scope = claims["sub"], claims.get("scope", "")
    _refuse_odd(user)
    return Claims(user, admin=isinstance(scope, str) and ADMIN in scope.split())


def _refuse_odd(user: object) -> None:
    if not isinstance(user, str) or not user.isprintable() or not 0 < len(user) <= MAX_USER:
        raise TokenError(f"the token's sub must be a printable string of 1 to {MAX_USER} characters")
