"""Single rules of sessions, at their edges."""

from __future__ import annotations

import attrs
import pytest

from actors.policy import sessions as rules
from actors.policy.session_tokens import Presented, make, take_apart
from actors.policy.sessions import REPEAT_MS, Limits, Refreshed, RefusedRefresh, Session, Sessions

LIMITS = Limits(idle_ms=1_000_000, absolute_ms=2_000_000, refresh_ms=500_000, access_ms=1, most_each=3)
KEY, HANDLE, SALT, CLIENT = b"k" * 32, "ab" * 12, b"s" * 16, b"c" * 16
SESSION = Session(HANDLE, SALT, "alice", ("s",), 0, 0, 0, 0, 1, CLIENT)


def token(generation: int) -> Presented:
    presented = take_apart(make("refresh", KEY, HANDLE, SALT, generation))
    assert presented is not None
    return presented


def rotated(times: int, at: int = 0) -> Sessions:
    book = Sessions(LIMITS, [SESSION])
    for generation in range(times):
        assert isinstance(book.refresh(token(generation), [KEY], [CLIENT], at), Refreshed)
    return book


@pytest.mark.parametrize(
    ("generation", "after", "client", "repeated"),
    [
        (2, 0, CLIENT, True),
        (2, REPEAT_MS, CLIENT, True),
        (2, -REPEAT_MS, CLIENT, True),  # the clock was set back
        (2, REPEAT_MS + 1, CLIENT, False),
        (2, 0, b"d" * 16, False),
        (1, 0, CLIENT, False),  # its successor was used: no answer was lost
        (0, 0, CLIENT, False),
    ],
)
def test_only_the_last_token_is_repeated(generation: int, after: int, client: bytes, repeated: bool) -> None:
    """Of three rotations the last alone may be asked for again, by who did it, for ten seconds; all else ends the
    session."""
    book = rotated(3, at=100_000)
    outcome = book.refresh(token(generation), [KEY], [client], 100_000 + after)
    if repeated:
        assert isinstance(outcome, Refreshed)
        assert outcome.repeated
        assert outcome.session.generation == 3
    else:
        assert isinstance(outcome, RefusedRefresh)
        assert outcome.reason == "reused"
    assert (book.find(HANDLE, 100_000) is not None) is repeated


def test_a_token_of_the_future_ends_nothing() -> None:
    """A refresh token that was never issued, as one whose rotation was lost with the disk, is just unknown."""
    book = rotated(1)
    assert book.refresh(token(5), [KEY], [CLIENT], 0) == RefusedRefresh("unknown")
    assert book.find(HANDLE, 0) is not None


def test_a_principal_is_revoked_up_to_a_moment() -> None:
    """What was issued to it up to then is over, what comes later and other principals are not; the later of two
    revocations counts, and none is forgotten before its time."""
    book = Sessions(LIMITS)
    assert book.revoke("principal", "alice", 1_000, 9_000)
    assert book.is_revoked((), "alice", 1_000)
    assert not book.is_revoked((), "alice", 1_001)
    assert not book.is_revoked((), "bob", 1_000)
    assert book.revoke("principal", "alice", 500, 5_000)
    assert book.is_revoked((), "alice", 1_000)
    assert book.forget_revocations(8_999) == 0
    assert book.forget_revocations(9_000) == 1
    assert not book.is_revoked((), "alice", 1_000)


def test_the_book_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bounds a new session or revocation is refused, and one that is known already is not."""
    monkeypatch.setattr(rules, "MOST_SESSIONS", 1)
    monkeypatch.setattr(rules, "MOST_REVOCATIONS", 1)
    book = Sessions(LIMITS, [SESSION])
    assert book.open(attrs.evolve(SESSION, handle="cd" * 12, principal="bob"), 0) == "full"
    assert book.open(SESSION, 0) is SESSION
    assert book.revoke("token", "one", 0, 1)
    assert book.revoke("token", "one", 0, 2)
    assert not book.revoke("token", "two", 0, 1)
