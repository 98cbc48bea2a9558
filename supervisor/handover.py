"""Who serves the listeners of a worker that can't. Pure.

A listening socket goes on taking connections into its backlog while its worker is being replaced. When that takes
longer than the warm standby needs, or the worker is suspect, a sibling accepts them too, so that nobody waits out a
backoff or a fence. It gives them back once their own worker serves again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs


@attrs.frozen
class Server:
    """One worker with listeners that may be handed over. ``serves``: it is up and its loop makes progress.

    ``replaced_soon``: a warm process is just taking its place. ``incarnation`` is its own, as a holder.
    """

    name: str
    incarnation: int
    serves: bool
    replaced_soon: bool


Holder = tuple[str, int]
"""A worker's name and incarnation."""


def holders(servers: Iterable[Server], now: Mapping[str, Holder]) -> dict[str, Holder]:
    """By owner, who is to hold its listeners besides itself, given who holds them ``now``.

    A holder stays the same while it serves; a new one is the serving sibling that holds the fewest.
    """
    everyone = tuple(servers)
    serving = {server.name: (server.name, server.incarnation) for server in everyone if server.serves}
    wanted: dict[str, Holder] = {}
    for server in everyone:
        held = now.get(server.name)
        valid = held is not None and serving.get(held[0]) == held
        if server.serves:
            continue
        if held is not None and valid:
            wanted[server.name] = held
        elif not server.replaced_soon and serving:
            load = [holder for holder, _ in wanted.values()]
            wanted[server.name] = serving[min(serving, key=lambda name: (load.count(name), name))]
    return wanted
