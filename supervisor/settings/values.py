"""What a variable's text may be: one parser a shape. A parser raises ValueError with what is wanted instead.

The message never holds the text itself: it may be a secret. Who reports it adds the text where that is allowed.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from ipc.settings import ANY, LOOPBACK_ORIGINS

# What the gateway looks at of a credential (actors.policy.identity): a longer one is refused unread.
_LONGEST_BEARER = 8192

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*\Z")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")  # RFC 9110 §5.6.2
_DEFAULT_PORTS = {"http": 80, "https": 443}


@attrs.frozen
class Parser:
    """``shape`` says in the help what is accepted; ``parse`` takes the text and, for paths, the working directory."""

    shape: str
    parse: Callable[[str, Path], object]


def _boolean(text: str, _directory: Path) -> bool:
    word = text.lower()
    if word in {"true", "1", "yes", "on"}:
        return True
    if word in {"false", "0", "no", "off"}:
        return False
    raise ValueError("must be true or false")


boolean = Parser("true|false", _boolean)


def integer(minimum: int, maximum: int = 2**53 - 1, unit: str = "") -> Parser:
    shape = f"{minimum} to {maximum}" if maximum < 2**53 - 1 else f"{minimum} or more"
    wanted = f"must be a whole number, {shape}{f' ({unit})' if unit else ''}"

    def parse(text: str, _directory: Path) -> int:
        # Bounded before it is read: int() of a very long text is slow.
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and minimum <= int(text) <= maximum):
            raise ValueError(wanted)
        return int(text)

    return Parser(unit or "number", parse)


def duration(minimum: int = 1) -> Parser:
    """Milliseconds. A year is as good as for ever, and every deadline stays within 63 bits of nanoseconds."""
    return integer(minimum, 366 * 86_400_000, "ms")


def size(minimum: int = 1, maximum: int = 2**40) -> Parser:
    return integer(minimum, maximum, "bytes")


def _fraction(text: str, _directory: Path) -> float:
    if not re.fullmatch(r"[0-9]{0,2}(\.[0-9]{1,9})?", text) or not text or not 0 < float(text) <= 1:
        raise ValueError("must be a number above 0, at most 1")
    return float(text)


fraction = Parser("0 to 1", _fraction)


def choice(*choices: str) -> Parser:
    by_word = {word.lower(): word for word in choices}

    def parse(text: str, _directory: Path) -> str:
        if text.lower() not in by_word:
            raise ValueError(f"must be {' or '.join(choices) if len(choices) < 3 else 'one of ' + ', '.join(choices)}")
        return by_word[text.lower()]

    return Parser("|".join(choices), parse)


def _log_level(text: str, _directory: Path) -> str:
    word = {"warn": "warning", "fatal": "critical", "trace": "debug"}.get(text.lower(), text.lower())
    if word not in {"debug", "info", "warning", "error", "critical"}:
        raise ValueError("must be one of debug, info, warning, error, critical")
    return word


log_level = Parser("debug|info|warning|error|critical", _log_level)


def _text(text: str, _directory: Path) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


text = Parser("text", _text)


def _secret(text: str, _directory: Path) -> str:
    if "\0" in text or "\n" in text or "\r" in text:
        raise ValueError("must be one line")
    return text


secret = Parser("secret", _secret)


def _bearer(text: str, _directory: Path) -> str:
    # RFC 6750 §2.1 and RFC 9110 §5.5: anything else can't travel in an Authorization header.
    if not (text.isascii() and text.isprintable() and " " not in text and "," not in text):
        raise ValueError("must be printable ASCII without spaces and commas")
    if len(text) > _LONGEST_BEARER:
        raise ValueError(f"has more than {_LONGEST_BEARER} characters: no client could present it")
    return text


bearer = Parser("token", _bearer)


def items(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def several(shape: str, one: Callable[[str], str]) -> Parser:
    """A list separated by commas; empty items are skipped, doubled ones kept once."""

    def parse(text: str, _directory: Path) -> tuple[str, ...]:
        parsed = tuple(dict.fromkeys(one(item) for item in items(text)))
        if not parsed:
            raise ValueError("is an empty list")
        return parsed

    return Parser(f"{shape},…", parse)


bearers = several("token", lambda item: _bearer(item, Path()))


def among(*choices: str) -> Parser:
    def one(item: str) -> str:
        if item not in choices:
            raise ValueError(f"must be a list of {', '.join(choices)}")
        return item

    return several("|".join(choices), one)


def _http_token(item: str) -> str:
    if not _TOKEN.match(item):
        raise ValueError("must be a list of names without spaces")
    return item


http_tokens = several("name", _http_token)


def _network(item: str) -> str:
    try:
        network = ipaddress.ip_network(item, strict=False)
    except ValueError:
        raise ValueError("must be a list of addresses or CIDR ranges, such as 10.0.0.0/8") from None
    return str(network)


networks = several("CIDR", _network)


def loopback_hosts() -> tuple[str, ...]:
    """127.0.0.1, and ::1 where this machine has it."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return ("127.0.0.1",)
    return ("127.0.0.1", "::1")


def _hosts(text: str, _directory: Path) -> tuple[str, ...]:
    hosts: list[str] = []
    for item in items(text):
        if item.lower() == "localhost":
            hosts.extend(loopback_hosts())
            continue
        try:
            hosts.append(str(ipaddress.ip_address(item.removeprefix("[").removesuffix("]"))))
        except ValueError:
            raise ValueError("must be IP addresses of this machine or localhost, separated by commas") from None
    if not hosts:
        raise ValueError("is an empty list")
    return tuple(dict.fromkeys(hosts))


hosts = Parser("address,…", _hosts)


def _host_name(item: str) -> str:
    name = item.lower().removesuffix(".")
    if name == ANY:
        return name
    try:
        return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    if not _HOST_NAME.match(name.removeprefix("*.")):
        raise ValueError("must be a list of host names without a port, of *.example.com for all below one, or *")
    return name


host_names = several("host", _host_name)


def _origin(item: str) -> str:
    """Serialised as browsers send it (Fetch standard: ASCII, lower case, no default port)."""
    if item in {ANY, LOOPBACK_ORIGINS}:
        return item
    wanted = f"must be a list of origins such as https://app.example, or {LOOPBACK_ORIGINS}, or *"
    if item.lower() == "null":
        raise ValueError(f"{wanted}; null is never allowed")
    try:
        parts = urlsplit(item)
        port = parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if not parts.scheme or not parts.hostname or "@" in parts.netloc:
        raise ValueError(wanted)
    if parts.path or parts.query or parts.fragment or item.endswith(("?", "#")):
        raise ValueError(f"{wanted}; an origin has no path, not even a final /")
    if not item.isascii():
        raise ValueError(f"{wanted}; names beyond ASCII in their xn-- form")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = "" if port is None or _DEFAULT_PORTS.get(parts.scheme) == port else f":{port}"
    return f"{parts.scheme}://{host}{suffix}"


origins = several("origin", _origin)


def _https_url(text: str, _directory: Path) -> str:
    """A URL that is safe to fetch: encrypted, or of this machine; and without a password, which ends up in logs."""
    wanted = "must be an https:// URL, or http:// of localhost, 127.0.0.1 or [::1]"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if not text.isascii() or not text.isprintable() or " " in text or port == 0:
        raise ValueError(wanted)
    if not (_HOST_NAME.match(host) or _is_address(host)):
        raise ValueError(wanted)
    if "@" in parts.netloc or "#" in text:
        raise ValueError(f"{wanted}, without a user, a password or a #fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_local(host)):
        raise ValueError(wanted)
    return text


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _is_local(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


https_url = Parser("URL", _https_url)


def _path(text: str, directory: Path) -> str:
    if "\0" in text:
        raise ValueError("must be a path")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("starts with ~, and there is no home directory") from None
    return str(directory / path)


path = Parser("path", _path)


def _file(text: str, directory: Path) -> str:
    found = _path(text, directory)
    try:
        # O_NONBLOCK: opening must not wait for the other end of a pipe; who reads the file says what it must be.
        with open(os.open(found, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb"):  # noqa: PTH123 - of a descriptor
            return found
    except OSError as error:
        raise ValueError(f"must be a readable file: {error.strerror}") from None


readable_file = Parser("file", _file)


def _method_costs(text: str, _directory: Path) -> dict[str, int]:
    costs: dict[str, int] = {}
    for item in items(text):
        method, equals, cost = item.rpartition("=")
        if not equals or not method.strip() or not re.fullmatch(r"[0-9]{1,9}", cost.strip()):
            raise ValueError("must be a list such as tools/call=5,ping=0")
        costs[method.strip()] = int(cost)
    return costs


method_costs = Parser("method=cost,…", _method_costs)


def _url_path(text: str, _directory: Path) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text):
        raise ValueError("must be a path such as /metrics")
    reserved = ("/health", "/livez", "/readyz", "/admin")
    if any(text == taken or text.startswith(f"{taken}/") for taken in reserved):
        raise ValueError("is taken by another part of the health listener")
    return text


url_path = Parser("path", _url_path)
