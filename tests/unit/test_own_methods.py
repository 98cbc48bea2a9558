"""Which methods are the gateway's own, however they are spelt."""

from __future__ import annotations

import pytest

from actors.policy.own_methods import OWN, is_own


@pytest.mark.parametrize("method", sorted(OWN))
@pytest.mark.parametrize(
    "spelt", ["{}", " {}\t", "{}\0", "\u200b{}", "\u3000{} ", "{} " + " " * 100_000, "\x1f{}\x00 \x00"]
)
def test_every_spelling_is_known(method: str, spelt: str) -> None:
    """Case, spaces at the ends and what can't be seen make no other method of it."""
    for letters in (method, method.upper(), method.title()):
        assert is_own(spelt.format(letters))
    assert is_own(method.replace("a", "a\x00"))
    assert is_own("auth/refre\u017fh")  # the long s


@pytest.mark.parametrize(
    "method", ["", "tools/call", "ping", "authenticate2", "auth", "auth/refreshed", "x/authenticate", "a" * 1_000_000]
)
def test_other_methods_are_not(method: str) -> None:
    """They are some server's."""
    assert not is_own(method)
