"""The rules of sessions against a model that keeps everything, in virtual time and through restarts."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from actors.policy.session_tokens import hkdf, is_ours, make, take_apart
from actors.policy.sessions import REPEAT_MS, Limits, Refreshed, RefusedRefresh, Session, Sessions

LIMITS = Limits(idle_ms=30_000, absolute_ms=200_000, refresh_ms=25_000, access_ms=5_000, most_each=2)
KEY, OTHER = hkdf(b"k", b"one"), hkdf(b"k", b"two")
CLIENTS = (b"a" * 16, b"b" * 16)


@attrs.define
class Model:
    """One session as the rules describe it: every token that ever was, and what is still true of it."""

    principal: str
    salt: bytes
    created: int
    used: int
    tokens: list[str]
    rotated: int
    client: bytes
    ended: bool = False

    def alive(self, now: int) -> bool:
        return not self.ended and now < self.used + LIMITS.idle_ms and now < self.created + LIMITS.absolute_ms


class Machine(RuleBasedStateMachine):
    """``disk`` is what has been committed; a crash may come at any moment, and loses what has not."""

    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.book = Sessions(LIMITS)
        self.disk: dict[str, Session] = {}
        self.revoked: dict[Any, Any] = {}
        self.model: dict[str, Model] = {}
        self.model_revoked: dict[str, int] = {}

    def commit(self) -> None:
        changes = self.book.take_changes()
        for handle, session in changes.sessions.items():
            if session is None:
                self.disk.pop(handle, None)
            else:
                self.disk[handle] = session
        for key, revocation in changes.revocations.items():
            if revocation is None:
                self.revoked.pop(key, None)
            else:
                self.revoked[key] = revocation

    @rule(target=handles, principal=st.sampled_from(["p", "q"]), client=st.sampled_from(CLIENTS))
    def open(self, principal: str, client: bytes) -> str:
        handle = f"{len(self.model):024x}"
        salt = handle.encode()[:16]
        live = [m for m in self.model.values() if m.principal == principal and m.alive(self.now)]
        wanted = Session(handle, salt, principal, ("s",), self.now, self.now, 0, self.now, 5_000, client)
        outcome = self.book.open(wanted, self.now)
        if len(live) >= LIMITS.most_each:
            assert outcome == "too many sessions"
            self.model[handle] = Model(principal, salt, 0, 0, [], 0, client, ended=True)
        else:
            assert outcome is wanted
            token = make("refresh", KEY, handle, salt, 0)
            self.model[handle] = Model(principal, salt, self.now, self.now, [token], self.now, client)
            assert self.book.open(wanted, self.now) is wanted  # asked again
        self.commit()
        return handle

    @rule(handle=handles, back=st.integers(0, 3), client=st.sampled_from(CLIENTS), crash=st.booleans())
    def refresh(self, handle: str, back: int, client: bytes, crash: bool) -> None:
        model = self.model[handle]
        if not model.tokens:
            return
        token = model.tokens[max(0, len(model.tokens) - 1 - back)]
        newest = token == model.tokens[-1]
        presented = take_apart(token)
        assert presented is not None
        outcome = self.book.refresh(presented, [KEY], [client], self.now)
        if not model.alive(self.now):
            assert outcome == RefusedRefresh("unknown")
            return
        if newest and self.now - model.rotated >= LIMITS.refresh_ms:
            assert outcome == RefusedRefresh("expired")
            return
        if newest:
            assert isinstance(outcome, Refreshed)
            assert not outcome.repeated
            if crash:  # before the commit: nobody has heard of it, and it has not happened
                self.restart()
                return
            self.commit()
            model.tokens.append(make("refresh", KEY, handle, model.salt, outcome.session.generation))
            model.rotated, model.client = self.now, client
            model.used = max(model.used, self.now)
            return
        last = len(model.tokens) > 1 and token == model.tokens[-2]
        if last and self.now - model.rotated <= REPEAT_MS and client == model.client:
            assert isinstance(outcome, Refreshed)
            assert outcome.repeated
            assert make("refresh", KEY, handle, model.salt, outcome.session.generation) == model.tokens[-1]
            return
        assert isinstance(outcome, RefusedRefresh)
        assert outcome.reason == "reused"
        self.commit()
        model.ended = True

    @rule(handle=handles)
    def use(self, handle: str) -> None:
        self.book.touch(handle, self.now)
        if self.model[handle].alive(self.now):
            self.model[handle].used = max(self.model[handle].used, self.now)

    @rule(handle=handles)
    def end(self, handle: str) -> None:
        self.book.end(handle)
        self.commit()
        self.model[handle].ended = True

    @rule(name=st.sampled_from(["x", "y"]), lasts=st.integers(1, 50_000))
    def revoke(self, name: str, lasts: int) -> None:
        assert self.book.revoke("token", name, self.now, self.now + lasts)
        self.commit()
        self.model_revoked[name] = max(self.model_revoked.get(name, 0), self.now + lasts)

    @rule(passed=st.one_of(st.integers(0, 500), st.integers(500, 40_000)))
    def wait(self, passed: int) -> None:
        self.now += passed

    @rule()
    def tidy(self) -> None:
        for session, _ in self.book.sweep(self.now):
            assert not self.model[session.handle].alive(self.now)
            self.model[session.handle].ended = True
        self.book.forget_revocations(self.now)
        self.book.note_touched()
        self.commit()

    @rule()
    def restart(self) -> None:
        """Killed, and made anew from the disk. Uses that were not written end a session sooner, never later."""
        self.book = Sessions(LIMITS, self.disk.values(), self.revoked.values())
        for session in self.disk.values():
            assert session.used_ms <= self.model[session.handle].used
            self.model[session.handle].used = session.used_ms

    @invariant()
    def agrees(self) -> None:
        live = {handle for handle, model in self.model.items() if model.alive(self.now)}
        assert {handle for handle in self.model if self.book.find(handle, self.now) is not None} == live
        for handle in live:
            bearer = take_apart(make("session", KEY, handle, self.model[handle].salt))
            assert bearer is not None
            assert self.book.bearer(bearer, [KEY], self.now) is not None
            assert self.book.bearer(bearer, [OTHER], self.now) is None
        for name, until in self.model_revoked.items():
            if self.now < until:
                assert self.book.is_revoked([name], "", 0)


TestSessions = Machine.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.text(max_size=100) | st.binary(max_size=80).map(lambda raw: "pcr_" + raw.hex()))
def test_whatever_is_presented_is_taken_apart_or_refused(text: str) -> None:
    """No text raises, and none that we did not make is ours."""
    presented = take_apart(text)
    assert presented is None or not is_ours(presented, [KEY], b"s" * 16)


@given(
    kind=st.sampled_from(["session", "refresh"]),
    handle=st.binary(min_size=12, max_size=12).map(bytes.hex),
    salt=st.binary(min_size=16, max_size=16),
    generation=st.integers(0, 0xFFFF_FFFF),
    position=st.integers(0, 63),
    letter=st.sampled_from("ABCDabcd0189-_"),
)
def test_only_the_value_as_it_was_made_is_ours(
    kind: Any, handle: str, salt: bytes, generation: int, position: int, letter: str
) -> None:
    """One changed character, another kind, salt or key: it is not ours any more."""
    made = make(kind, KEY, handle, salt, generation if kind == "refresh" else 0)
    presented = take_apart(made)
    assert presented is not None
    assert (presented.kind, presented.handle) == (kind, handle)
    assert is_ours(presented, [OTHER, KEY], salt)
    assert not is_ours(presented, [OTHER], salt)
    assert not is_ours(presented, [KEY], bytes(16) if salt != bytes(16) else b"x" * 16)
    changed = made[: 4 + position] + letter + made[5 + position :]
    if changed != made:
        other = take_apart(changed)
        assert other is None or not is_ours(other, [KEY], salt)
    swapped = take_apart(("pcr_" if kind == "session" else "pcs_") + made[4:])
    assert swapped is None or not is_ours(swapped, [KEY], salt)


def test_hkdf_is_that_of_the_rfc() -> None:
    """RFC 5869 appendix A.3: no salt, no info; its first block."""
    assert hkdf(b"\x0b" * 22, b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
