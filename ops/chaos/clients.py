"""Clients that mean well: each calls tools all the time and holds the gateway to every single answer.

Ids are small, reused and of both kinds (``1`` and ``"1"`` are two), and every client uses the same ones, so that an
answer that goes astray finds somebody who waits for that id; whose it is, its text says.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import attrs
import trio

from . import wire
from .credentials import Authority, Secrets, Way
from .ledger import Call, Ledger
from .wire import Door, Ended, Refused, Wire

CALL_TIMEOUT_MS = 6_000
"""How the gateway is configured."""

SILENCE_S = 2 * CALL_TIMEOUT_MS / 1000 + 6
"""Who has heard nothing of a call for so long hears nothing any more."""

_IDS = [b"%d" % n for n in range(12)] + [b'"%d"' % n for n in range(12)]
BUSY = frozenset({429, 502, 503, 504})
"""Errors that a client who did nothing wrong may get."""


@attrs.define
class Place:
    """Where the gateway is just now. It moves when it is started anew."""

    ws: int = 0
    tcp: int = 0
    tls: Authority | None = None
    proxied: dict[bool, int] = attrs.field(factory=dict)  # the relays' own ports, by ``ws``

    _contexts: dict[str, ssl.SSLContext] = attrs.field(factory=dict, init=False)

    def port(self, *, ws: bool) -> int:
        return self.ws if ws else self.tcp

    def context(self, certificate: str = "") -> ssl.SSLContext | None:
        """How to speak to the gateway; None: in the clear. ``certificate``: with one for that name."""
        if self.tls is None:
            return None
        if certificate not in self._contexts:
            self._contexts[certificate] = self.tls.client(certificate)
        return self._contexts[certificate]


@attrs.define(eq=False)
class Identity:
    """Who a client is, and what it has been given so far."""

    name: str
    way: Way
    source: str
    secrets: Secrets
    token: str = ""  # what lasts: a JWT, a session's id, an access token
    family: str = ""

    def door(self, place: Place, *, ws: bool, proxied: bool = False) -> Door:
        port = place.proxied[ws] if proxied else place.port(ws=ws)
        context = place.context(self.name if self.way == "certificate" else "")
        return Door(port, ws, context, "127.0.0.1" if proxied else self.source)

    async def present(self, place: Place) -> tuple[str, str]:
        """(token, query) to connect with now. Raises what ``wire.exchange`` does."""
        match self.way:
            case "static":
                return self.secrets.static, ""
            case "jwt":
                self.token = self.token or self.secrets.token(self.name)
                return self.token, ""
            case "certificate":
                return ("", "") if place.tls is not None else (self.secrets.static, "")
            case "ticket":
                answer = await wire.exchange(self.door(place, ws=True), "/auth/ticket", token=self.secrets.static)
                return "", f"?ticket={answer['ticket']}"
            case _:
                if not self.token:
                    answer = await wire.exchange(self.door(place, ws=True), "/auth/token", token=self.secrets.static)
                    self.family = answer["session"]
                    self.token = answer["session"] if self.way == "session" else answer["access_token"]
                return self.token, ""


async def enter(identity: Identity, place: Place, *, ws: bool, server: str = "", proxied: bool = False) -> Wire:
    """An authenticated connection. Raises OSError, Ended, Refused and trio.TooSlowError."""
    with trio.fail_after(wire.WITHIN_S):
        token, query = await identity.present(place)
        door = identity.door(place, ws=ws, proxied=proxied)
        opened = await wire.connect(door)
        try:
            if ws:
                await wire.open_ws(opened, (f"/ws/{server}" if server else "/ws") + query, token, place.ws)
            else:
                await wire.open_lines(opened, token, server)
        except BaseException:
            await wire.close(opened)
            raise
        return opened


def request(name: str, identity: bytes, pad: int = 0) -> bytes:
    """A call of the tool of that name; the answer is ``pad`` bytes longer than need be."""
    arguments = b'{"pad":%d}' % pad
    return (
        b'{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"%s","arguments":%s}}'
        % (identity, name.encode(), arguments)
    )


@attrs.define(eq=False)
class Client:
    """One that connects, and connects again, until its round is over."""

    identity: Identity
    ledger: Ledger
    place: Place
    random: random.Random
    ws: bool
    server: str = ""
    pause_s: float = 0.25
    depth: int = 4
    proxied: bool = False
    shared: str = ""  # the address that the gateway sees, if not its own
    pace: Literal["", "slow reader", "slow writer"] = ""
    pad: int = 0
    _waiting: dict[bytes, Call] = attrs.field(factory=dict, init=False)

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def budget(self) -> str:
        """Whoever shares an address shares its limit."""
        return self.shared or self.identity.source

    async def live(self) -> None:
        """Until cancelled."""
        while True:
            opened = await self._open()
            if opened is None:
                await trio.sleep(self.random.uniform(0.05, 0.2))
                continue
            try:
                await self._use(opened)
            except Ended as ended:
                self._cut(ended)
            except trio.TooSlowError:
                self.ledger.find("unanswered", f"{self.name}: no answer to initialize on a connection that lives")
            finally:
                for call in self._waiting.values():
                    self.ledger.done(call, "cut")
                self._waiting.clear()
                await wire.close(opened)

    async def _open(self) -> Wire | None:
        began_ns = time.monotonic_ns()
        try:
            opened = await enter(self.identity, self.place, ws=self.ws, server=self.server, proxied=self.proxied)
        except ConnectionRefusedError:
            self.ledger.attempted(self.name, began_ns, "connection refused")
            return None
        except OSError as error:
            self.ledger.attempted(self.name, began_ns, f"error: {error.strerror or error}")
        except Ended:
            self.ledger.attempted(self.name, began_ns, "ended")
        except Refused as refused:
            self.ledger.attempted(self.name, began_ns, f"refused: {refused.code}")
            if refused.code == 401 and self.identity.way == "ticket":
                # What a crash did to its ticket counts as a failure of its address; three of them block that.
                self.identity.source = f"127.4.{self.random.randint(0, 255)}.{self.random.randint(1, 254)}"
            await trio.sleep(0.2)
        except trio.TooSlowError:
            self.ledger.attempted(self.name, began_ns, "no answer")
        else:
            self.ledger.attempted(self.name, began_ns, "ok")
            return opened
        return None

    def _cut(self, ended: Ended) -> None:
        self.ledger.counts["connections cut"] += 1
        if not self.pace:
            kind = "proxied" if self.proxied else self.server
            self.ledger.cuts.append((time.monotonic_ns(), kind, self.name, str(ended)))

    async def _use(self, opened: Wire) -> None:
        with trio.fail_after(wire.WITHIN_S):
            try:
                await wire.initialize(opened)
            except Refused as refused:
                self.ledger.counts[f"initialize: {refused.code}"] += 1
                if refused.code not in BUSY:
                    self.ledger.find("session-ended", f"{self.name}: initialize was refused: {refused}")
        async with trio.open_nursery() as nursery:
            failure: list[Ended] = []

            async def guarded(step: Callable[[Wire], Awaitable[None]]) -> None:
                try:
                    await step(opened)
                except Ended as ended:
                    failure.append(ended)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(guarded, self._hear)
            nursery.start_soon(guarded, self._ask)
            nursery.start_soon(self._watch, nursery.cancel_scope)
        if failure:
            raise failure[0]

    async def _ask(self, opened: Wire) -> None:
        while True:
            await trio.sleep(self.random.uniform(0.3, 1.7) * self.pause_s)
            free = [identity for identity in _IDS if identity not in self._waiting]
            if len(self._waiting) >= self.depth or not free:
                continue
            identity = self.random.choice(free[: self.depth + 2])
            call = self.ledger.sent(self.ledger.name(self.name), self.name, self.budget)
            self._waiting[identity] = call
            raw = opened.framed(request(call.name, identity, self.pad))
            if self.pace != "slow writer":
                await opened.write(raw)
                continue
            for at in range(0, len(raw), 7):
                await opened.write(raw[at : at + 7])
                await trio.sleep(0.01)

    async def _hear(self, opened: Wire) -> None:
        while True:
            if self.pace == "slow reader":
                await trio.sleep(0.5)
            self._take(await opened.next())

    async def _watch(self, using: trio.CancelScope) -> None:
        """Nobody may be left without a word."""
        while True:
            await trio.sleep(1)
            late_ns = time.monotonic_ns() - int(SILENCE_S * 1e9)
            for call in self._waiting.values():
                if call.sent_ns < late_ns and self.pace != "slow reader":
                    self.ledger.find("unanswered", f"{call.name}: no answer and no error on a connection that lives")
                    using.cancel()
                    return

    def _take(self, raw: bytes) -> None:
        message = json.loads(raw)
        if "method" in message:
            self.ledger.counts["notifications"] += 1
            return
        identity = json.dumps(message.get("id")).encode()
        call = self._waiting.pop(identity, None)
        if call is None:
            self.ledger.find("foreign-answer", f"{self.name}: an answer to {identity!r}, which it does not wait for")
            return
        error = message.get("error")
        if error is not None:
            code, data = error["code"], error.get("data") or {}
            self.ledger.done(call, "error", code, str(data.get("reason", error["message"])))
            self.ledger.counts[f"calls: error {code}"] += 1
            if code not in BUSY:
                self.ledger.find("wrong-error", f"{call.name}: {json.dumps(error)}")
            return
        self.ledger.done(call, "result")
        self.ledger.counts["calls: result"] += 1
        text = message["result"]["content"][0]["text"]
        if text != call.name:
            self.ledger.find("foreign-answer", f"{call.name} was answered with the answer to {text}")


async def served(identity: Identity, ledger: Ledger, place: Place, *, ws: bool, server: str) -> None:
    """Try until a new connection has been opened and its call been answered; connections that fail are attempts."""
    while True:
        began_ns = time.monotonic_ns()
        outcome = "ended"
        try:
            opened = await enter(identity, place, ws=ws, server=server)
            try:
                outcome = await _one_call(identity, ledger, opened)
            finally:
                await wire.close(opened)
        except ConnectionRefusedError:
            outcome = "connection refused"
        except OSError as error:
            outcome = f"error: {error.strerror or error}"
        except Ended:
            pass
        except Refused as refused:
            outcome = f"refused: {refused.code}"
        except trio.TooSlowError:
            outcome = "no answer"
        ledger.attempted(identity.name, began_ns, outcome)
        if outcome == "ok":
            return
        await trio.sleep(0.03)


async def _one_call(identity: Identity, ledger: Ledger, opened: Wire) -> str:
    call = ledger.sent(ledger.name(identity.name), identity.name, identity.source)
    try:
        with trio.fail_after(SILENCE_S):
            await wire.initialize(opened)
            await opened.send(request(call.name, b'"probe"'))
            while True:
                answer = json.loads(await opened.next())
                if answer.get("id") == "probe":
                    break
    except BaseException:
        ledger.done(call, "cut")
        raise
    error = answer.get("error")
    if error is not None:
        ledger.done(call, "error", error["code"], str(error.get("data")))
        return f"call refused: {error['code']}"
    ledger.done(call, "result")
    if answer["result"]["content"][0]["text"] != call.name:
        ledger.find("foreign-answer", f"{call.name} was answered with {answer}")
    return "ok"
