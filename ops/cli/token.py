"""``mcp-token``: JWTs in the form that the gateway's contract asks for, made and looked into."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jwt

from .duration import duration
from .failure import ClientFailure, UsageError
from .jwt_rules import JwtPolicy, broken_rules, ignored_hints
from .terminal import printable
from .version import version

NAME: Final = "mcp-token"

# RFC 7518 §3.2: a key of at least the size of the hash; and what production asks of every secret.
MIN_SECRET: Final = 32

SCOPES: Final = ("mcp:call", "mcp:read", "admin")

NOT_YET: Final = (
    "This release's gateway authenticates static tokens only: it does not accept JWTs yet, and has no way to revoke "
    "one. Both come with a later release; until then these commands serve to prepare and to check tokens."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the token breaks a rule or is none, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        return _issue(options, os.environ) if options.command == "issue" else _inspect(options, os.environ)
    except ClientFailure as failure:
        print(f"{NAME}: {failure}", file=sys.stderr)
        return failure.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(NAME, description="Make and look into JWTs for the gateway.", epilog=NOT_YET)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="issue|inspect")

    issue = commands.add_parser(
        "issue",
        help="sign a token with JWT_SECRET",
        description="Sign a token with $JWT_SECRET (or the file $JWT_SECRET_FILE), and print it on stdout.",
        epilog=NOT_YET,
    )
    issue.add_argument("--subject", required=True, metavar="NAME", help="the principal: whom the token speaks for")
    issue.add_argument(
        "--scope", action="append", choices=SCOPES, help="may be given several times (default: mcp:call and mcp:read)"
    )
    issue.add_argument("--ttl", type=duration, metavar="15m", help="lifetime (default: $JWT_ACCESS_TTL_MS or 15m)")
    issue.add_argument("--json", action="store_true", help="a JSON document with the token and its claims")

    inspect = commands.add_parser(
        "inspect",
        help="show a token's header and claims, and the rules that it breaks",
        description="Decode a token without verifying its signature; name every rule of the gateway that it breaks.",
        epilog=NOT_YET,
    )
    inspect.add_argument("token", nargs="?", default="-", help="the token, or - for stdin (default)")
    inspect.add_argument("--json", action="store_true", help="one JSON document")
    return parser


def _issue(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    policy = _policy(environment)
    secret = _secret(environment)
    lifetime = options.ttl or timedelta(milliseconds=_milliseconds(environment, "JWT_ACCESS_TTL_MS", 900_000))
    if lifetime.total_seconds() > policy.max_ttl:
        raise UsageError(f"--ttl: longer than $JWT_MAX_TTL_MS allows ({policy.max_ttl:g} s)")
    if "HS256" not in policy.algorithms:
        raise UsageError("$JWT_ALGORITHMS does not hold HS256, with which this command signs")
    issued = int(time.time())
    claims: dict[str, Any] = {
        "iss": policy.issuer,
        "aud": policy.audience,
        "sub": options.subject,
        "jti": str(uuid.uuid4()),
        "iat": issued,
        "exp": issued + math.ceil(lifetime.total_seconds()),
        "scope": " ".join(options.scope or SCOPES[:2]),
    }
    if not options.subject.strip():
        raise UsageError("--subject: a name is needed")
    token = jwt.encode(claims, secret, algorithm="HS256")
    print(json.dumps({"token": token, "claims": claims}, indent=2) if options.json else token)
    return 0


def _inspect(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    policy = _policy(environment)
    # Bounded, because stdin may be anything; what is longer than this is no token at all.
    text = (sys.stdin.read(1 << 20) if options.token == "-" else options.token).strip()  # noqa: S105 - no secret: "stdin"
    try:
        decoded = jwt.decode_complete(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        print(f"{NAME}: this is not a JWT (three parts of base64url, joined by dots)", file=sys.stderr)
        return 1
    header, claims = decoded["header"], decoded["payload"]
    broken = broken_rules(len(text.encode()), header, claims, policy, time.time())
    if options.json:
        print(json.dumps({"header": header, "claims": claims, "verified": False, "broken": broken}, indent=2))
        return 1 if broken else 0
    for title, members in (("header", header), ("claims", claims)):
        print(f"{title}:")
        for name, value in members.items():
            print(printable(f"  {name}: {json.dumps(value, ensure_ascii=False)}{_moment(name, value)}"))
    for name in ignored_hints(header):
        print(f"note: the header's {name} is ignored; only configured keys count")
    for rule in broken:
        print(printable(f"refused: {rule}"))
    if not broken:
        print("no rule is broken (the signature was not verified)")
    return 1 if broken else 0


def _moment(name: str, value: object) -> str:
    if name not in ("exp", "iat", "nbf") or not isinstance(value, int | float):
        return ""
    try:
        return f"  ({datetime.fromtimestamp(value, UTC).isoformat()})"
    except (OverflowError, OSError, ValueError):
        return "  (no time)"


def _policy(environment: Mapping[str, str]) -> JwtPolicy:
    default = JwtPolicy()
    algorithms = tuple(part.strip() for part in environment.get("JWT_ALGORITHMS", "").split(",") if part.strip())
    return JwtPolicy(
        algorithms=algorithms or default.algorithms,
        issuer=environment.get("JWT_ISSUER") or default.issuer,
        audience=environment.get("JWT_AUDIENCE") or default.audience,
        max_ttl=_milliseconds(environment, "JWT_MAX_TTL_MS", 86_400_000) / 1000,
        leeway=_milliseconds(environment, "JWT_LEEWAY_MS", 5000) / 1000,
    )


def _milliseconds(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"${name}: {text!r} is not a number of milliseconds")
    return int(text)


def _secret(environment: Mapping[str, str]) -> str:
    """Never shown, whatever is wrong with it."""
    secret, path = environment.get("JWT_SECRET"), environment.get("JWT_SECRET_FILE")
    if secret and path:
        raise UsageError("JWT_SECRET and JWT_SECRET_FILE are both set")
    if path:
        try:
            secret = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"$JWT_SECRET_FILE: {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not secret:
        raise UsageError("JWT_SECRET is not set; openssl rand -hex 32 makes a good one")
    if len(secret.encode()) < MIN_SECRET:
        raise UsageError(f"JWT_SECRET has fewer than {MIN_SECRET} bytes")
    return secret


if __name__ == "__main__":
    sys.exit(main())
