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

from actors.policy.jws import BadKey, TokenRefused, parse
from actors.policy.jwt_tokens import LONGEST_SUBJECT, OwnIssuer, Times, Verifier, own_subject
from supervisor.settings import ConfigurationError, load_some
from supervisor.settings.tokens import JWT_SECRET_FILE, read_jwt_secret

from .api import add_options, find
from .duration import duration
from .failure import ClientFailure, UsageError
from .jwt_rules import JwtPolicy, broken_rules, ignored_hints
from .terminal import printable
from .version import version

NAME: Final = "mcp-token"

# RFC 7518 §3.2: a key of at least the size of the hash; and what production asks of every secret.
MIN_SECRET: Final = {"HS256": 32, "HS384": 48, "HS512": 64}

SCOPES: Final = ("mcp:call", "mcp:read", "admin")

SAME: Final = (
    "The settings are read as the gateway reads them: the environment, NAME_FILE, .env in the working directory; in "
    "development without JWT_SECRET the key is STATE_DIR/jwt.secret, which the gateway makes at its first start."
)

_VARIABLES: Final = (
    "SECURITY_PROFILE", "STATE_DIR", "JWT_SECRET", "JWT_SECRET_PREVIOUS", "JWT_ALGORITHMS", "JWT_ISSUER",
    "JWT_AUDIENCE", "JWT_MAX_TTL_MS", "JWT_LEEWAY_MS", "JWT_ACCESS_TTL_MS",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the token breaks a rule or is none, 2 usage.

    Of ``revoke`` also: 1 not done, 3 the admin token is missing or wrong, 4 the gateway is out of reach.
    """
    options = parser().parse_args(arguments)
    commands = {"issue": _issue, "inspect": _inspect, "revoke": _revoke}
    try:
        return commands[options.command](options, os.environ)
    except ClientFailure as failure:
        print(f"{NAME}: {printable(str(failure))}", file=sys.stderr)
        return failure.exit_code


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(NAME, description="Make, look into and revoke tokens of the gateway.")
    parser.epilog = (
        "Exit codes: 0 done, 1 not done, or the token breaks a rule, 2 usage, 3 the admin token is missing or wrong, "
        "4 out of reach."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="issue|inspect|revoke")

    issue = commands.add_parser(
        "issue",
        help="sign a token with JWT_SECRET",
        description="Sign a token with the gateway's JWT_SECRET, and print it on stdout.",
        epilog=f"{SAME} It signs with the first one of these algorithms.",
    )
    issue.add_argument("--subject", required=True, metavar="NAME", help="the principal: whom the token speaks for")
    issue.add_argument(
        "--scope", action="append", choices=SCOPES, help="may be given several times (default: mcp:call and mcp:read)"
    )
    issue.add_argument("--ttl", type=duration, metavar="15m", help="lifetime (default: $JWT_ACCESS_TTL_MS or 15m)")
    issue.add_argument("--json", action="store_true", help="a JSON document with the token and its claims")
    issue.add_argument("--state-dir", metavar="DIR", help="the gateway's STATE_DIR, which may hold jwt.secret")

    inspect = commands.add_parser(
        "inspect",
        help="show a token's header and claims, and the rules that it breaks",
        description="Decode a token and name every rule of the gateway that it breaks. The signature is verified where "
        "JWT_SECRET or JWT_SECRET_PREVIOUS is known. Whether a token was revoked only the gateway knows.",
        epilog=SAME,
    )
    inspect.add_argument("token", nargs="?", default="-", help="the token, or - for stdin (default)")
    inspect.add_argument("--json", action="store_true", help="one JSON document")
    inspect.add_argument("--state-dir", metavar="DIR", help="the gateway's STATE_DIR, which may hold jwt.secret")

    revoke = commands.add_parser(
        "revoke",
        help="have a running gateway refuse a token from now on",
        description="Have a running gateway refuse a token, and end the live connections that were opened with it.",
        epilog="A refresh token or a session id ends its session. --principal ends everything issued to a name so far.",
    )
    revoke.add_argument("token", nargs="?", help="the token, or - for stdin; an argument shows in the process list")
    revoke.add_argument("--jti", metavar="ID", help="instead: the jti of one of the gateway's own tokens")
    revoke.add_argument("--principal", metavar="NAME", help="instead: whoever bears this name")
    revoke.add_argument("--json", action="store_true", help="print the gateway's own document")
    add_options(revoke)
    return parser


def _revoke(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    # Bounded, because stdin may be anything.
    token = sys.stdin.read(1 << 20).strip() if options.token == "-" else options.token  # noqa: S105 - no secret: "stdin"
    wanted = {"token": token, "jti": options.jti, "principal": options.principal}
    document = {name: value for name, value in wanted.items() if value is not None}
    if len(document) != 1 or not all(document.values()):
        raise UsageError("give a token, --jti or --principal, one of them")
    reply = find(options, environment, Path.cwd()).post("/admin/v1/tokens/revoke", document)
    if not 200 <= reply.status < 300:
        raise ClientFailure(reply.detail)
    detail = reply.document.get("detail")
    print(json.dumps(reply.document) if options.json else printable(f"revoked: {detail}" if detail else "revoked"))
    return 0


def _issue(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(options, environment)
    policy = _policy(settings)
    algorithm = policy.algorithms[0]
    secrets = _secrets(settings)
    if not settings["jwt_secret"]:
        secrets = _made_secret(settings)
    secret = secrets[0]
    if len(secret.encode()) < MIN_SECRET[algorithm]:
        raise UsageError(f"JWT_SECRET has fewer than {MIN_SECRET[algorithm]} bytes")
    lifetime = options.ttl or timedelta(milliseconds=settings["jwt_access_ttl_ms"])
    if lifetime.total_seconds() > policy.max_ttl:
        raise UsageError(f"--ttl: longer than JWT_MAX_TTL_MS allows ({policy.max_ttl:g} s)")
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
    try:
        own_subject(claims)
    except TokenRefused:
        raise UsageError(
            f"--subject: must be a printable name of at most {LONGEST_SUBJECT} letters, without a |"
        ) from None
    token = jwt.encode(claims, secret, algorithm=algorithm)
    print(json.dumps({"token": token, "claims": claims}, indent=2) if options.json else token)
    return 0


def _inspect(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _settings(options, environment)
    policy = _policy(settings)
    # Bounded, because stdin may be anything; what is longer than this is no token at all.
    text = (sys.stdin.read(1 << 20) if options.token == "-" else options.token).strip()  # noqa: S105 - no secret: "stdin"
    try:
        decoded = jwt.decode_complete(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        print(f"{NAME}: this is not a JWT (three parts of base64url, joined by dots)", file=sys.stderr)
        return 1
    header, claims = decoded["header"], decoded["payload"]
    broken = broken_rules(len(text.encode()), header, claims, policy, time.time())
    secrets = _secrets(settings)
    refused = _verdict(text, policy, secrets)
    if refused and not broken:
        broken.append(refused)
    verified = bool(secrets) and not refused
    if options.json:
        print(json.dumps({"header": header, "claims": claims, "verified": verified, "broken": broken}, indent=2))
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
        print(f"no rule is broken (the signature {'is right' if verified else 'was not verified'})")
    return 1 if broken else 0


def _verdict(token: str, policy: JwtPolicy, secrets: Sequence[str]) -> str:
    """Why the gateway would refuse it, as far as can be told without a secret; empty if it wouldn't."""
    try:
        if not secrets:
            parse(token)
            return ""
        shortest = min(len(secret.encode()) for secret in secrets)
        fitting = [algorithm for algorithm in policy.algorithms if shortest >= MIN_SECRET[algorithm]]
        own = OwnIssuer.of(policy.issuer, policy.audience, secrets, fitting)
        times = Times(round(policy.leeway * 1000), round(policy.max_ttl * 1000))
        Verifier(own=own, times=times).verify(token, time.time_ns() // 1_000_000)
    except TokenRefused as refused:
        return refused.reason
    except BadKey as bad:
        return f"JWT_SECRET: {bad}"
    return ""


def _moment(name: str, value: object) -> str:
    if name not in ("exp", "iat", "nbf") or not isinstance(value, int | float):
        return ""
    try:
        return f"  ({datetime.fromtimestamp(value, UTC).isoformat()})"
    except (OverflowError, OSError, ValueError):
        return "  (no time)"


def _settings(options: argparse.Namespace, environment: Mapping[str, str]) -> Mapping[str, Any]:
    """By field. Raises UsageError."""
    if options.state_dir is not None:
        environment = {**environment, "STATE_DIR": options.state_dir}
    try:
        return load_some(_VARIABLES, environment, Path.cwd())
    except ConfigurationError as error:
        raise UsageError("; ".join(map(str, error.problems))) from None


def _policy(settings: Mapping[str, Any]) -> JwtPolicy:
    return JwtPolicy(
        algorithms=settings["jwt_algorithms"],
        issuer=settings["jwt_issuer"],
        audience=settings["jwt_audience"],
        max_ttl=settings["jwt_max_ttl_ms"] / 1000,
        leeway=settings["jwt_leeway_ms"] / 1000,
    )


def _secrets(settings: Mapping[str, Any]) -> list[str]:
    """Those that verify, the one that signs first; none where none is known. Never shown, whatever is wrong."""
    if settings["jwt_secret"]:
        secrets = [secret for secret in (settings["jwt_secret"], settings["jwt_secret_previous"]) if secret]
        if min(len(secret.encode()) for secret in secrets) < MIN_SECRET["HS256"]:
            raise UsageError(f"JWT_SECRET or JWT_SECRET_PREVIOUS has fewer than {MIN_SECRET['HS256']} bytes")
        return secrets
    try:
        return _made_secret(settings)
    except UsageError:
        return []


def _made_secret(settings: Mapping[str, Any]) -> list[str]:
    """The key that a gateway in development has made for itself. Raises UsageError."""
    unset = "JWT_SECRET is not set"
    if settings["security_profile"] == "production":
        raise UsageError(f"{unset}; openssl rand -hex 32 makes a good one")
    path = Path(settings["state_dir"]) / JWT_SECRET_FILE
    try:
        return [read_jwt_secret(path)]
    except OSError as error:
        raise UsageError(f"{unset}, and {path}: {error.strerror}; --state-dir names another place") from None
    except ConfigurationError as error:
        raise UsageError("; ".join(map(str, error.problems))) from None


if __name__ == "__main__":
    sys.exit(main())
