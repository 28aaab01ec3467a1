"""Who is next. Pure: the order itself is the store's (`Store.claim`), this says how many of what may be taken."""

from collections.abc import Collection, Mapping

from intermission.handlers.registry import AnyHandler


def rooms(free: int, handlers: Collection[AnyHandler], running: Mapping[str, int]) -> list[tuple[int, list[str]]]:
    """How many tasks of which services to claim now.

    Services whose own limit cannot bite share one claim, in first-come order; each of the others gets its own.
    """
    if free <= 0:
        return []
    shared: list[str] = []
    single: list[tuple[int, list[str]]] = []
    for handler in handlers:
        room = free if handler.max_running is None else handler.max_running - running.get(handler.service, 0)
        if room >= free:
            shared.append(handler.service)
        elif room > 0:
            single.append((room, [handler.service]))
    return [(free, shared), *single] if shared else single
