"""``mcp-admin top``: the gateway as it runs, on one screen."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .api import Api
from .failure import ClientFailure, Refused, UsageError
from .operate import STYLES, cell, console, print_json, seconds, table

_OVERVIEW: Final = "/admin/v1/overview"
_SEVERITIES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_BARS: Final = " ▁▂▃▄▅▆▇█"
_MOST_EVENTS: Final = 200
_FEWEST: Final = 3  # rows of a table, however low the terminal
_UNBOUNDED: Final = 1000
_PRINTED: Final = 120  # lines, where no terminal says how many
_COLUMNS: Final = frozenset({"time", "event", "severity", "outcome", "peer_ip", "principal"})
_APART: Final = _COLUMNS | {"seq", "peer_port", "detail"}

Json = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print it once, for scripts; so it is where no terminal is")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (default: 1)")
    parser.epilog = f"Ctrl-C ends it. A gateway that restarts meanwhile does not. {parser.epilog}"


def run(api: Api, options: argparse.Namespace) -> int:
    """Until Ctrl-C, or once."""
    if not 0.2 <= options.interval <= 3600:
        raise UsageError("--interval: must be between 0.2 and 3600 seconds")
    screen = console()
    if options.once or options.json or not screen.is_terminal:
        if not (options.once or options.json):
            print("mcp-admin top: this is no terminal, so it is printed once (--once)", file=sys.stderr)
        document = _ask(api, 0)
        if options.json:
            print_json(document)
        else:
            screen.print(_screen(document, document["events"]["events"], _PRINTED, api.where))
        return 0
    _live(api, screen, options.interval)
    return 0


def _ask(api: Api, after: int) -> Json:
    reply = api.get(f"{_OVERVIEW}?after={after}")
    if reply.status != 200:
        raise ClientFailure(reply.detail)
    return reply.document


def _live(api: Api, screen: Console, interval_s: float) -> None:
    """For ever. The first look may fail as any command does; after it, what is wrong is shown."""
    document = _ask(api, 0)
    events: list[Json] = document["events"]["events"]
    last = document["events"]["last"]
    trouble = ""

    def drawn() -> RenderableType:
        return _screen(document, events, screen.height, api.where, trouble)

    # The screen asks for itself each time it is drawn, so a terminal that has changed its size is filled again.
    with Live(get_renderable=drawn, console=screen, screen=True, auto_refresh=True, refresh_per_second=2) as live:
        while True:
            time.sleep(interval_s)
            try:
                found = _ask(api, last)
            except Refused:
                raise  # another token by now: asking on would only count as an attack
            except ClientFailure as failure:
                trouble = str(failure)
            else:
                trouble, document = "", found
                begun_anew = found["events"]["last"] < last
                events = ([] if begun_anew else events) + found["events"]["events"]
                events, last = events[-_MOST_EVENTS:], 0 if begun_anew else found["events"]["last"]
            live.refresh()


@attrs.frozen
class _Part:
    """A table, and how its rows are made: as many as there is room for."""

    title: str
    columns: tuple[str, ...]
    rows: list[Iterable[object]]
    total: int

    def rendered(self, most: int) -> Iterator[RenderableType]:
        left = self.total - min(most, len(self.rows))
        more = f"  and {left} more" if left > 0 else ""
        yield Text.assemble((self.title, "bold"), (f" {self.total}{more}", "dim"))
        if self.rows:
            yield _table(self.columns, self.rows[:most])


def _screen(document: Json, events: list[Json], height: int, where: str, trouble: str = "") -> Group:
    """Everything, in at most ``height`` lines as far as that goes."""
    head = [*_summary(document, where, trouble)]
    trees = _actors(document)
    servers = _servers(document)
    parts = [_connections(document), _blocks(document), _events(events, document["events"].get("trouble", ""))]
    # A line more than is counted would scroll the screen; titles, heads and the blank lines count too.
    taken = len(head) + len(trees.rows) + len(servers.rows) + 2 * 3 + len(parts) * 3
    room = max(height - taken - 1, 0)
    body: list[RenderableType] = [*head, Text()]
    for part in (servers, trees):
        body += [*part.rendered(_UNBOUNDED), Text()]
    for index, part in enumerate(parts):
        left = len(parts) - index
        most = max(_FEWEST, room // left)
        body += [*part.rendered(most), Text()]
        room -= min(most, len(part.rows))
    return Group(*body[:-1])


def _summary(document: Json, where: str, trouble: str) -> Iterator[Text]:
    health, rates = document["health"], document["rates"]["present"]
    tree = document["tree"] or {}
    status = "draining" if tree.get("draining") else str(health["status"])
    yield Text.assemble(
        ("portcullis ", "bold"), (where, "dim"), "  ", (status, STYLES.get(status, "yellow")),
        f"  up {seconds(health['uptime'])}  restarts {health['restarts']}",
    )  # fmt: skip
    kinds = ", ".join(f"{name} {count}" for name, count in health["connections"].items() if name != "total")
    yield Text(
        f"connections {health['connections']['total']} ({kinds})   in {rates['messages_in']:g}/s "
        f"{_bytes(rates['bytes_in'])}/s   out {rates['messages_out']:g}/s {_bytes(rates['bytes_out'])}/s   "
        f"refused {rates['refused']:g}/s"
    )
    history = [look["messages_in"] for look in document["rates"]["history"]]
    yield Text.assemble(("messages in, two minutes: ", "dim"), _spark(history))
    for reason in health["reasons"]:
        yield Text.assemble(("because ", "dim"), (cell(reason).plain, "yellow"))
    if trouble:
        yield Text.assemble(("out of reach: ", "bold red"), cell(trouble).plain)


def _spark(values: list[float]) -> str:
    """Sixty characters: of each two looks the higher one."""
    pairs = [max(values[index : index + 2]) for index in range(0, len(values), 2)][-60:]
    highest = max([*pairs, 1.0])
    return "".join(_BARS[0 if not value else max(1, round(value / highest * 8))] for value in pairs)


def _servers(document: Json) -> _Part:
    rows: list[Iterable[object]] = [
        (
            name, row["state"], row["breaker"], seconds(row["retry_in_ms"] / 1000) if "retry_in_ms" in row else "",
            row["in_flight"], row["sessions"], row["restarts"],
        )
        for name, row in document["health"]["upstreams"].items()
    ]  # fmt: skip
    columns = ("server", "state", "breaker", "next probe", "in flight", "sessions", "restarts")
    return _Part("Servers", columns, rows, len(rows))


def _actors(document: Json) -> _Part:
    rows: list[Iterable[object]] = []
    answering = document["health"]["actors"]
    for worker in (document["tree"] or {}).get("workers", []):
        memory = f"{worker['rss_kb'] / 1024:.0f} MiB" if worker["rss_kb"] else ""
        for index, actor in enumerate(worker["actors"] or [{}]):
            first = index == 0
            silent = actor.get("state") == "up" and not answering.get(actor.get("name"), {}).get("answering", True)
            mailbox = actor.get("mailbox", {})
            own = (worker["name"], worker["state"], worker["restarts"], memory) if first else (Text(),) * 4
            state = "silent" if silent else actor.get("state")
            counts = (actor.get("restarts"), mailbox.get("queued"), mailbox.get("received"))
            rows.append((*own, actor.get("name"), state, *counts))
    columns = ("worker", "state", "restarts", "memory", "actor", "state", "restarts", "mailbox", "received")
    return _Part("Actors", columns, rows, sum(len(w["actors"]) for w in (document["tree"] or {}).get("workers", [])))


def _connections(document: Json) -> _Part:
    rows: list[Iterable[object]] = [
        (
            row["id"], row["peer"], row["principal"], row["upstream"], seconds(row["age_s"]), seconds(row["idle_s"]),
            row["messages_in"], row["messages_out"], _bytes(row["bytes_in"]), _bytes(row["bytes_out"]),
        )
        for row in document["connections"]["rows"]
    ]  # fmt: skip
    columns = ("connection", "peer", "principal", "server", "age", "idle", "in", "out", "bytes in", "bytes out")
    return _Part("Connections", columns, rows, document["connections"]["total"])


def _blocks(document: Json) -> _Part:
    listed = document["blocks"]
    rows: list[Iterable[object]] = [
        (row.get("ip") or f"principal:{row.get('principal')}", seconds(row["left_s"]), row["reason"])
        for row in listed["blocks"]
    ]
    if listed.get("trouble"):
        rows = [(listed["trouble"], "", "")]
    return _Part("Blocks", ("client", "for another", "reason"), rows, listed["total"])


def _events(events: list[Json], trouble: str) -> _Part:
    """The newest first."""
    rows: list[Iterable[object]] = []
    for one in reversed(events):
        who = " @ ".join(str(one[name]) for name in ("principal", "peer_ip") if one.get(name))
        members = [(name, value) for name, value in one.items() if name not in _APART]
        members += one.get("detail", {}).items()
        style = _SEVERITIES.get(str(one.get("severity")), "")
        rows.append((
            str(one.get("time", ""))[11:19], Text(cell(one.get("severity")).plain, style=style),
            Text(cell(one.get("event")).plain, style=style), one.get("outcome"), who,
            " ".join(f"{name}={value}" for name, value in members),
        ))  # fmt: skip
    if trouble:
        rows.insert(0, ("", "", trouble, "", "", ""))
    return _Part("Events", ("time (UTC)", "severity", "event", "outcome", "who", "what"), rows, len(events))


def _table(columns: tuple[str, ...], rows: Iterable[Iterable[object]]) -> Table:
    """One line a row, whatever its length: the screen's height is reckoned in rows."""
    made = table(columns, ())
    for column in made.columns:
        column.overflow = "ellipsis"
        column.no_wrap = True
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else cell(value) for value in row))
    return made


def _bytes(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    left = float(value)
    for unit in ("B", "KiB", "MiB"):
        if left < 1024:
            return f"{left:.0f} {unit}" if unit == "B" or left >= 10 else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:.1f} GiB"


