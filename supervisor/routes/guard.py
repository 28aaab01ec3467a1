"""Who asks, and whether they may: where nobody has to say who they are, only this machine's own user."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from intermission.supervisor.config import is_loopback
from intermission.supervisor.routes import proxies
from intermission.supervisor.routes.cors import admitted
from intermission.supervisor.routes.problems import Problem


@dataclass(frozen=True, slots=True)
class Caller:
    """The user who asks."""

    user: str
    admin: bool = False

    @property
    def scope(self) -> str | None:
        """Whose tasks they may see: their own, or None for everybody's."""
        return None if self.admin else self.user


CALLER: Final = web.RequestKey("caller", Caller)
LOCAL: Final = Caller("local")


def guard(identify: Callable[[web.Request], Caller]) -> Middleware:
    """The middleware that lets in whom ``identify`` knows; it raises a `Problem` for the others."""

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[CALLER] = identify(request)
        return await handler(request)

    return let_in


def local_only(request: web.Request) -> Caller:
    """Everyone is the user ``local``, provided that no web page sent them.

    Any page in a browser on this machine can post to localhost, and with a name that resolves to 127.0.0.1 (DNS
    rebinding) even read the answers. The first shows in ``Origin``, the second in ``Host``.
    """
    host = request.headers.get("Host", "")
    if not is_loopback(_name(host)):
        raise Problem(403, "foreign-host", f"{host[:100]!r} is not this machine: use 127.0.0.1, [::1] or localhost")
    origin = request.headers.get("Origin")
    ours = {f"{request.scheme}://{host.lower()}", proxies.origin(request)}
    if origin is not None and origin.lower() not in ours and admitted(request) is None:
        raise Problem(403, "foreign-origin", "requests from other origins' pages are refused")
    return LOCAL


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
