"""The keys of an outside issuer: a JWK Set (RFC 7517 §5) of public keys. Pure.

A set that holds a secret or a private key is refused whole: whoever can read it can sign. So is one that names two keys
alike. A key that merely is of no use here (another type, another use, too weak) is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from .jws import LONGEST_KEY_ID, BadKey, Compact, Key, TokenRefused, unbase64
from .strict_json import strict_object

MAX_SET: Final = 256 * 1024  # bytes; a key with its certificate chain takes 5 KiB
MAX_KEYS: Final = 64

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 §6.2.2, §6.3.2, §6.4.1
# NIST SP 800-131A for the least; above the most a single verification would take milliseconds.
_RSA_BITS: Final = range(2048, 8192 + 1)
_MAX_EXPONENT: Final = 2**32

ALGORITHMS: Final = frozenset({*_RSA, *_CURVES.values()})


class UnusableKeys(ValueError):
    """This is no set to trust. The message holds nothing of it."""


class KeyUnknown(TokenRefused):
    """The token names a key that isn't in the set: maybe the issuer has a new one."""


@attrs.frozen(repr=False)
class KeySet:
    """``skipped`` counts, by reason, the keys that are of no use here."""

    keys: tuple[Key, ...] = ()
    skipped: dict[str, int] = attrs.Factory(dict)

    def __len__(self) -> int:
        return len(self.keys)

    def key_of(self, token: Compact) -> Key:
        """The one key that may have signed this.

        A token that names none is right only where one key is left to choose from. Raises TokenRefused, KeyUnknown.
        """
        if token.key_id is None:
            fitting = [key for key in self.keys if key.algorithm == token.algorithm]
            if len(fitting) > 1:
                raise TokenRefused("token names no key")
            if not fitting:
                raise KeyUnknown("token key unknown")
            return fitting[0]
        named = next((key for key in self.keys if key.key_id == token.key_id), None)
        if named is None:
            raise KeyUnknown("token key unknown")
        if named.algorithm != token.algorithm:
            raise TokenRefused("token algorithm is not the key's")
        return named


def parse_jwks(data: bytes, algorithms: Sequence[str]) -> KeySet:
    """The usable keys of a JWK Set.

    Args:
      data: JSON in UTF-8.
      algorithms: the allowed ones. An RSA key that doesn't name its own is bound to the first RSA algorithm of these.

    Raises UnusableKeys, also when no key is left.
    """
    if len(data) > MAX_SET:
        raise UnusableKeys(f"more than {MAX_SET} bytes")
    try:
        entries = strict_object(data).get("keys")
    except ValueError:
        raise UnusableKeys("not a JSON object, or a name occurs twice in it") from None
    if not isinstance(entries, list):
        raise UnusableKeys("no JWK Set: it has no list of keys")
    if len(entries) > MAX_KEYS:
        raise UnusableKeys(f"more than {MAX_KEYS} keys")
    keys: list[Key] = []
    skipped: Counter[str] = Counter()
    for entry in entries:
        if not isinstance(entry, dict):
            raise UnusableKeys("a key is no object")
        if entry.get("kty") == "oct" or entry.keys() & _PRIVATE:
            raise UnusableKeys("it holds a secret or a private key")
        try:
            keys.append(_key(entry, algorithms))
        except BadKey as bad:
            skipped[str(bad)] += 1
    _differ(keys)
    if not keys:
        raise UnusableKeys(f"no usable key ({_counted(skipped)})")
    return KeySet(tuple(keys), dict(skipped))


def _differ(keys: Iterable[Key]) -> None:
    names = Counter(key.key_id for key in keys if key.key_id)
    if names and max(names.values()) > 1:
        raise UnusableKeys("two keys have the same kid")


def _counted(skipped: Counter[str]) -> str:
    return ", ".join(f"{count}: {why}" for why, count in skipped.items()) or "it is empty"


def _key(entry: dict[str, Any], algorithms: Sequence[str]) -> Key:
    """Raises BadKey."""
    if "use" in entry and entry["use"] != "sig":
        raise BadKey("not for signatures")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise BadKey("not for verifying")
    key_id = entry.get("kid", "")
    if not isinstance(key_id, str) or len(key_id) > LONGEST_KEY_ID:
        raise BadKey("bad kid")
    algorithm = _algorithm(entry, algorithms)
    if entry["kty"] == "RSA":
        return Key.of_jwk(_rsa(entry), algorithm, key_id)
    members = ("kty", "crv", "x", "y") if entry["kty"] == "EC" else ("kty", "crv", "x")
    for member in members[2:]:
        _bytes(entry, member)
    return Key.of_jwk({member: entry[member] for member in members}, algorithm, key_id)


def _algorithm(entry: dict[str, Any], algorithms: Sequence[str]) -> str:
    """The one algorithm of this key: its own, where it names one that fits its type."""
    kind, curve, own = entry.get("kty"), entry.get("crv"), entry.get("alg")
    if kind == "RSA":
        fitting: tuple[str, ...] = _RSA
    elif isinstance(kind, str) and isinstance(curve, str) and (kind, curve) in _CURVES:
        fitting = (_CURVES[kind, curve],)
    else:
        raise BadKey("unknown type or curve")
    if own is not None and own not in fitting:
        raise BadKey("its algorithm is not of its type")
    allowed = [algorithm for algorithm in algorithms if algorithm in fitting and own in (None, algorithm)]
    if not allowed:
        raise BadKey("algorithm not allowed")
    return allowed[0]


def _rsa(entry: dict[str, Any]) -> dict[str, Any]:
    modulus, exponent = (int.from_bytes(_bytes(entry, member)) for member in ("n", "e"))
    if modulus.bit_length() not in _RSA_BITS:
        raise BadKey("RSA modulus too short or too long")
    if not 3 <= exponent < _MAX_EXPONENT or not exponent % 2 or not modulus % 2:
        raise BadKey("bad RSA numbers")
    if has_roca_weakness(modulus):
        raise BadKey("RSA key of a broken generator (ROCA)")
    return {"kty": "RSA", "n": entry["n"], "e": entry["e"]}


def _bytes(entry: dict[str, Any], member: str) -> bytes:
    """A base64url member of bounded length. Raises BadKey."""
    text = entry.get(member)
    if not isinstance(text, str) or len(text) > 2048 or not text.isascii():
        raise BadKey("a member is missing or malformed")
    try:
        return unbase64(text.encode("ascii"))
    except TokenRefused:
        raise BadKey("a member is missing or malformed") from None


def _powers(base: int, prime: int) -> frozenset[int]:
    found, power = {1}, base % prime
    while power not in found:
        found.add(power)
        power = power * base % prime
    return frozenset(found)


_SMALL_PRIMES: Final = (
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
)  # fmt: skip
_ROCA: Final = tuple((prime, _powers(65537, prime)) for prime in _SMALL_PRIMES)


def has_roca_weakness(modulus: int) -> bool:
    """CVE-2017-15361: primes of that generator are powers of 65537 modulo all small primes, and so is their product."""
    return all(modulus % prime in powers for prime, powers in _ROCA)
