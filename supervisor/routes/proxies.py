"""The origin at which a client sees us. Behind a proxy only that knows it, and only those that are listed are believed.

What a listed one says is `Forwarded` (RFC 7239) or, where there is none, `X-Forwarded-Proto` and `X-Forwarded-Host`.
From anybody else such a header shows only that there is a proxy: then the origin is not known.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from aiohttp import HttpVersion11, web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
TRUSTED: Final = web.AppKey("trusted", tuple[Network, ...])
_SIGNS: Final = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")
_SCHEMES: Final = frozenset({"http", "https"})
_HOST: Final = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
_NODE: Final = re.compile(r"\[(?P<v6>[^\]]+)\](:\d+)?|(?P<v4>[0-9.]+)(:\d+)?")
"""How RFC 7239 writes an address; names and what is obfuscated are nobody's."""


def origin(request: web.Request) -> str | None:
    """Like ``https://example.org``; None where that cannot be known."""
    if request.version >= HttpVersion11 and not any(name in request.headers for name in _SIGNS):
        said: Mapping[str, str] = {"proto": request.scheme}
    elif not _is_trusted(request.app[TRUSTED], request.remote):
        return None
    else:
        said = _by_standard(request) if "Forwarded" in request.headers else _by_custom(request)
    scheme, host = said.get("proto", "").lower(), said.get("host") or request.host
    return f"{scheme}://{host.lower()}" if scheme in _SCHEMES and _HOST.fullmatch(host) else None


def _by_standard(request: web.Request) -> Mapping[str, str]:
    """What the outermost of the proxies says that are all listed; each has put its own behind those before it."""
    said: Mapping[str, str] = {}
    for element in reversed(request.forwarded):
        said = {**said, **element}
        node = _NODE.fullmatch(element.get("for", ""))
        if node is None or not _is_trusted(request.app[TRUSTED], node["v6"] or node["v4"]):
            break
    return said


def _by_custom(request: web.Request) -> Mapping[str, str]:
    """Of several values the last, which is the listed one's own: the others may be a client's."""
    names = {"proto": "X-Forwarded-Proto", "host": "X-Forwarded-Host"}
    given = {key: ",".join(request.headers.getall(name, [])) for key, name in names.items()}
    return {key: text.rpartition(",")[2].strip() for key, text in given.items()}


def _is_trusted(networks: tuple[Network, ...], text: str | None) -> bool:
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # how a socket for both versions shows the older one
    return any((mapped or address) in network for network in networks)
