"""Texts that are, or may be, somebody's credential: they stand in no record, whatever field they were written into."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_ISSUED: Final = ("pcs_", "pcr_")  # session ids and refresh tokens: see policy.session_tokens
_RUN: Final = re.compile(r"[A-Za-z0-9_\-+/=]{32,}\Z")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


def is_credential(text: str) -> bool:
    """Whether it has the form of something that the gateway lets in: a session id, a refresh token, a JWT."""
    if text.startswith(_ISSUED):
        return True
    header, *rest = text.split(".", 3)
    if len(rest) != 2 or not header.isascii():
        return False
    try:
        return base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)).lstrip().startswith(b"{")
    except (binascii.Error, ValueError):
        return False


def may_be_one(text: str) -> bool:
    """The same, and what looks as random as a static token: hex, base64 and their like, of 32 characters and more."""
    if is_credential(text):
        return True
    if not _RUN.match(text) or _UUID.match(text):
        return False
    digits = sum(character.isdigit() for character in text)
    upper = sum(character.isupper() for character in text)
    lower = sum(character.islower() for character in text)
    return digits >= 4 or min(upper, lower) >= 4
