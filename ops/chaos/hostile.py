"""Clients that mean ill, and operators who act against them. No upstream may ever see a call whose name begins with H-.

What each may not do holds at every instant, so they try all the time, while the gateway is being broken.
"""

from __future__ import annotations

import json
import random
import secrets
import time

import attrs
import trio

from . import wire
from .clients import Identity, Place, enter, request
from .credentials import Secrets
from .ledger import Ledger
from .wire import Door, Ended, Refused

MARK = "H-"
_NOISE = (b"\0" * 64, b"GET / HTTP/9.9\r\n\r\n", b"{" * 2000 + b"\n", b"\x16\x03\x01")


@attrs.define(eq=False)
class Blocked:
    """An address that gets itself blocked, and from then on comes with a good token."""

    name: str
    source: str
    known_ns: int = 0  # since when it has been told that it is blocked


@attrs.define(eq=False)
class Villains:
    """All of them. ``revoked`` are tokens whose revocation was answered, by name, with the time of the answer."""

    ledger: Ledger
    place: Place
    random: random.Random
    secrets: Secrets
    blocked: Blocked
    revoked: list[tuple[str, int]] = attrs.field(factory=list)
    _generations: int = 0

    async def live(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for step in (
                self._bad_token_lines, self._bad_token_upgrade, self._forbidden_tool, self._polluted,
                self._blocked_address, self._revoked_token, self._revoke_one, self._noise,
            ):  # fmt: skip
                nursery.start_soon(self._again, step)

    async def _again(self, step: object) -> None:
        while True:
            await trio.sleep(self.random.uniform(0.15, 0.5))
            self.ledger.counts["hostile attempts"] += 1
            try:
                with trio.fail_after(wire.WITHIN_S):
                    await step()  # type: ignore[operator]
            except ConnectionRefusedError:
                self.ledger.attempted("villain", time.monotonic_ns(), "connection refused")
            except (OSError, Ended, Refused, trio.TooSlowError, json.JSONDecodeError):
                self.ledger.counts["hostile attempts that were refused"] += 1

    def _call(self) -> bytes:
        name = MARK + self.ledger.name("villain")
        self.ledger.counts["hostile calls"] += 1
        return request(name, b"1")

    def _address(self) -> str:
        """Another one each time, or it would be blocked after the third offence."""
        return f"127.{self.random.randint(100, 199)}.{self.random.randint(0, 255)}.{self.random.randint(1, 254)}"

    def _stranger(self) -> Identity:
        """Somebody with a good token, and a name of his own: offences block the name."""
        return Identity(f"stranger-{self.random.getrandbits(64):x}", "jwt", self._address(), self.secrets)

    def _door(self, *, ws: bool, source: str = "") -> Door:
        source = source or self._address()
        return Door(self.place.port(ws=ws), ws, self.place.context(), source)

    async def _bad_token_lines(self) -> None:
        """A wrong token, and calls right behind it without waiting for what becomes of it."""
        opened = await wire.connect(self._door(ws=False))
        try:
            login = {"jsonrpc": "2.0", "id": 0, "method": "authenticate", "params": {"token": secrets.token_hex(32)}}
            await opened.write(json.dumps(login).encode() + b"\n" + self._call() + b"\n" + self._call() + b"\n")
            with trio.move_on_after(1):
                while True:
                    answer = json.loads(await opened.next())
                    if "result" in answer:
                        self.ledger.find("unauthorised", f"without a right token it got {answer}")
        finally:
            await wire.close(opened)

    async def _bad_token_upgrade(self) -> None:
        """A wrong token in the upgrade, and frames right behind it."""
        opened = await wire.connect(self._door(ws=True))
        try:
            head = wire.upgrade("/", secrets.token_hex(32), self.place.ws)
            await opened.write(head + opened.framed(self._call()) + opened.framed(self._call()))
            status = int((await opened.head()).split(b" ", 2)[1])
            if status == 101:
                self.ledger.find("unauthorised", "an upgrade with a wrong token was accepted")
        finally:
            await wire.close(opened)

    async def _forbidden_tool(self) -> None:
        """A good token, and a tool that the policy denies."""
        await self._use(self._stranger(), ws=self.random.random() < 0.5)

    async def _polluted(self) -> None:
        """A good token, and a message whose content is always refused."""
        ws = self.random.random() < 0.5
        opened = await enter(self._stranger(), self.place, ws=ws)
        try:
            name = MARK + self.ledger.name("villain")
            for raw in (
                '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%s","arguments":{"__proto__":{}}}}',
                '{"jsonrpc":"2.0","id":2,"Method":"x","method":"tools/call","params":{"name":"%s","arguments":{}}}',
                '{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"%s","arguments":{}}',
            ):
                await opened.send((raw % name).encode())
            with trio.move_on_after(1):
                for _ in range(3):
                    answer = json.loads(await opened.next())
                    if "result" in answer:
                        self.ledger.find("unauthorised", f"a message that is refused always got {answer}")
        finally:
            await wire.close(opened)

    async def _use(self, identity: Identity, *, ws: bool) -> None:
        opened = await enter(identity, self.place, ws=ws)
        try:
            await opened.send(self._call())
            with trio.move_on_after(1):
                answer = json.loads(await opened.next())
                if "result" in answer:
                    self.ledger.find("unauthorised", f"a forbidden call got {answer}")
        finally:
            await wire.close(opened)

    async def _blocked_address(self) -> None:
        """Three failures block the address; from then on a good token is of no use to it."""
        ws = self.random.random() < 0.5
        known_ns = self.blocked.known_ns
        token = self.secrets.static if known_ns else secrets.token_hex(32)
        opened = await wire.connect(self._door(ws=ws, source=self.blocked.source))
        try:
            if ws:
                await wire.open_ws(opened, "/", token, self.place.ws)
            else:
                await wire.open_lines(opened, token, "")
            self.ledger.find("block-forgotten" if known_ns else "unauthorised", f"{self.blocked.source} got in")
            await opened.send(self._call())
        except Refused as refused:
            self.ledger.counts[f"blocked address: {refused.code}"] += 1
            if refused.code == 403:
                self.blocked.known_ns = self.blocked.known_ns or time.monotonic_ns()
        finally:
            await wire.close(opened)

    async def _revoke_one(self) -> None:
        """A session is made, used, and revoked. Its live connection has to end, and never does it work again."""
        await trio.sleep(self.random.uniform(0.5, 2))
        self._generations += 1
        door = Door(self.place.ws, True, self.place.context(), self._address())
        made = await wire.exchange(door, "/auth/token", token=self.secrets.static)
        token = self.random.choice((made["access_token"], made["session"]))
        identity = Identity(f"revoked{self._generations}", "session", door.source, self.secrets, token)
        opened = await enter(identity, self.place, ws=self.random.random() < 0.5)
        try:
            await wire.exchange(door, "/auth/revoke", token=token, fields={"token": token})
            revoked_ns = time.monotonic_ns()
            self.revoked.append((token, revoked_ns))
            self.ledger.counts["revocations"] += 1
            await self._until_it_ends(opened, revoked_ns)
        finally:
            await wire.close(opened)

    async def _until_it_ends(self, opened: wire.Wire, revoked_ns: int) -> None:
        """Within a second, says the contract. What is late is noted with its time; the judge knows the faults."""
        try:
            with trio.fail_after(12):
                while True:
                    await opened.next()
        except Ended:
            self.ledger.endings.append((revoked_ns, time.monotonic_ns()))
        except trio.TooSlowError:
            self.ledger.find("revocation-forgotten", "a live connection went on for 12 s after its token was revoked")

    async def _revoked_token(self) -> None:
        if not self.revoked:
            return
        token, _ = self.random.choice(self.revoked)
        identity = Identity("revoked", "session", self._address(), self.secrets, token)
        opened = await enter(identity, self.place, ws=self.random.random() < 0.5)
        try:
            self.ledger.find("revocation-forgotten", "a revoked token got in")
            await opened.send(self._call())
        finally:
            await wire.close(opened)

    async def _noise(self) -> None:
        """Bytes that are nothing."""
        opened = await wire.connect(self._door(ws=self.random.random() < 0.5))
        try:
            await opened.write(self.random.choice(_NOISE))
            with trio.move_on_after(0.2):
                await opened.next()
        finally:
            await wire.close(opened)
