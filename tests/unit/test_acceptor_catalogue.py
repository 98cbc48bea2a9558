"""An acceptor's half of the breaker: its copy of the catalogue, what it tells of it, and how it spends permits."""

from __future__ import annotations

import types
from typing import Any, cast

from actors.acceptor.catalogue import CHANGED_EVERY_NS, SAME_EVERY_NS, Catalogue
from actors.acceptor.routes import Breakers
from actors.policy.catalogue import MAX_ENTRIES, Key
from ipc.errors import ActorDown
from ipc.messages import BreakerSnapshot, Circuit, ListAnswers, Message, ProbesInFlight
from ipc.settings import Settings, Upstream

KEY: Key = ("a", "tools/list", "", "2025-11-25")


class Bench:
    """What stands for a hub here: the time, the settings, and a breaker that takes messages or is down."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.down = False
        self.sent: list[Message] = []
        self.name = "acceptor.0"
        self.settings = Settings(upstreams=(Upstream(name="a", kind="tcp"), Upstream(name="b", kind="tcp")))
        self.context = types.SimpleNamespace(address=lambda _name: self)
        self.catalogue = Catalogue(cast("Any", self))
        self.breakers = Breakers(cast("Any", self))

    def control(self, message: Message) -> None:
        if self.down:
            raise ActorDown("breaker")
        self.sent.append(message)

    def keep(self, tools: bytes, key: Key = KEY, extra: bytes = b"") -> None:
        self.catalogue.keep(key, b'{"jsonrpc":"2.0","id":1,"result":{"tools":[%b]%b}}' % (tools, extra))

    def told(self) -> list[tuple[str, bool]]:
        """Ticks; the cursor of each row that was told, and whether the whole answer was."""
        self.catalogue.tick(self.now)
        sent, self.sent = self.sent, []
        return [(row.cursor, bool(row.result)) for message in sent if isinstance(message, ListAnswers)
                for row in message.rows]  # fmt: skip


def test_answers_are_told_once_and_not_too_often() -> None:
    """What is new is told with the next tick, a changed answer and one given again only now and then, and to a new
    breaker everything."""
    bench = Bench()
    bench.keep(b'{"name":"x","inputSchema":{}}')
    assert bench.told() == [("", True)]
    assert bench.told() == []
    bench.now += 1
    bench.keep(b"2")
    bench.keep(b"3")
    assert bench.told() == []
    bench.now += CHANGED_EVERY_NS
    assert bench.told() == [("", True)]
    bench.now += CHANGED_EVERY_NS
    bench.keep(b"3")
    assert bench.told() == []
    bench.now += SAME_EVERY_NS
    assert bench.told() == [("", False)]
    bench.catalogue.tell_all()
    assert bench.told() == [("", True)]
    bench.now += CHANGED_EVERY_NS
    bench.keep(b"3", extra=b',"cacheScope":"private"')
    assert bench.told() == [("", False)]
    assert bench.catalogue.statistics()["a"]["answers"] == 0


def test_a_breaker_that_is_down_is_told_later() -> None:
    """Nothing is lost meanwhile, and nothing raised."""
    bench = Bench()
    bench.down = True
    bench.keep(b"")
    assert bench.told() == []
    bench.down = False
    assert bench.told() == [("", True)]


def test_many_cursors_leave_nothing_behind() -> None:
    """However many pages clients ask for, what is remembered of what was told is bounded too."""
    bench = Bench()
    for number in range(8 * MAX_ENTRIES):
        bench.keep(b"", ("a", "tools/list", f"c{number}", ""))
        bench.now += 1
        bench.catalogue.tick(bench.now)
    assert bench.catalogue.statistics()["a"]["answers"] == MAX_ENTRIES
    assert len(bench.catalogue._told) <= 4 * MAX_ENTRIES + 1
    assert len(bench.catalogue._unsaid) <= MAX_ENTRIES


def test_the_schemas_of_tools_follow_the_lists() -> None:
    """They are known from own and from others' answers, the latest one's."""
    bench = Bench()
    assert bench.catalogue.tools("a") == {}
    bench.keep(b'{"name":"x","inputSchema":{"v":1}}')
    assert bench.catalogue.tools("a") == {"x": b'{"v":1}'}
    assert bench.catalogue.tools("b") == {}
    bench.now += 1
    bench.keep(b'{"name":"x","inputSchema":{"v":2}}')
    assert bench.catalogue.tools("a") == {"x": b'{"v":2}'}
    other = Bench()
    other.now = bench.now + 5
    other.keep(b'{"name":"y","inputSchema":{}}')
    other.catalogue.tick(other.now)
    (message,) = other.sent
    assert isinstance(message, ListAnswers)
    bench.catalogue.learn(message)
    assert bench.catalogue.tools("a") == {"y": b"{}"}


def test_no_more_probes_than_permits() -> None:
    """Half-open, as many calls pass as there are permits that no probe uses; the use, and the want of one, are told
    once; unknown counts as half-open with one; closed and open need none."""
    bench = Bench()
    breakers = bench.breakers
    breakers.learn(BreakerSnapshot([Circuit("a", "half_open", permits=2)]))
    for _ in range(2):
        assert breakers.refused_for("a", bench.now) == 0
        assert breakers.is_half_open("a")
        breakers.probe("a", 1)
    assert breakers.refused_for("a", bench.now) > 0
    breakers.tick()
    breakers.tick()
    assert bench.sent == [ProbesInFlight("acceptor.0", [("a", 2, True)])]
    breakers.probe("a", -1)
    assert breakers.refused_for("a", bench.now) == 0
    breakers.tick()
    assert bench.sent[1:] == [ProbesInFlight("acceptor.0", [("a", 1, False)])]
    assert breakers.refused_for("b", bench.now) == 0
    breakers.probe("b", 1)
    assert breakers.refused_for("b", bench.now) > 0
    bench.down = True
    breakers.tick()
    bench.down = False
    breakers.tick()
    assert bench.sent[2:] == [ProbesInFlight("acceptor.0", [("a", 1, False), ("b", 1, True)])]
    breakers.learn(BreakerSnapshot([Circuit("a", "closed"), Circuit("b", "open", bench.now + 5_000_000_000)]))
    assert breakers.refused_for("a", bench.now) == 0
    assert not breakers.is_half_open("a")
    assert breakers.is_open("b")
    assert breakers.refused_for("b", bench.now) == 5000
    assert breakers.refused_for("b", bench.now + 10_000_000_000) > 0
