"""Names in client certificates."""

from __future__ import annotations

from typing import Any

import pytest

from actors.policy.certificate import MAX_NAME, credential, fingerprint, identify, principal

PRINT = "sha256:" + "ab" * 32


def subject(*names: str) -> dict[str, Any]:
    return {"subject": tuple(((("commonName", name)),) for name in names)}


def test_the_common_name_comes_first() -> None:
    """Then a URI, then an e-mail address, whatever their order in the certificate; DNS names name machines."""
    others = (("DNS", "host"), ("email", "a@example.org"), ("URI", "spiffe://example.org/a"))
    assert principal({**subject("agent"), "subjectAltName": others}, PRINT) == "agent"
    assert principal({"subjectAltName": others}, PRINT) == "spiffe://example.org/a"
    assert principal({"subjectAltName": others[:2]}, PRINT) == "a@example.org"
    assert principal({"subjectAltName": others[:1]}, PRINT) == PRINT
    assert principal({}, PRINT) == PRINT


@pytest.mark.parametrize(
    "name",
    ["", " a", "a\nb", "a\0", "iss|sub", "sha256:" + "cd" * 32, "SHA256:x", "x" * (MAX_NAME + 1), "a\u202eb", "\ud800"],
)
def test_what_is_no_name_is_passed_over(name: str) -> None:
    """Control characters, marks that reorder text, what could be read as another kind of identity, and what is long."""
    assert principal(subject(name), PRINT) == PRINT
    assert principal({**subject(name), "subjectAltName": (("email", "a@b"),)}, PRINT) == "a@b"


def test_two_common_names_are_none() -> None:
    """Which of them is meant can't be told, so neither is taken."""
    assert principal(subject("admin", "agent"), PRINT) == PRINT


def test_a_credential_says_it_all_and_ends_with_its_certificate() -> None:
    """What the acceptor writes auth reads; from its end on it is nobody's."""
    line = credential(subject("agent 7"), bytes.fromhex("ab" * 32), 5000)
    assert fingerprint(line) == PRINT
    who = identify(line, 4999)
    assert who is not None
    assert (who.principal, who.expires_at_ms, who.issuer) == ("agent 7", 5000, "certificate")
    assert identify(line, 5000) is None


@pytest.mark.parametrize(
    "text", ["", "agent", PRINT, f"{PRINT} x agent", f"{PRINT} 1 ", f" {PRINT} 1 a", f"{PRINT[:-1]} 1 a"]
)
def test_what_is_no_credential_is_refused(text: str) -> None:
    """Never half understood."""
    with pytest.raises(ValueError, match="credential"):
        identify(text, 0)
