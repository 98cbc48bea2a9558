"""Random policy files and list answers, many of them broken.

The invariants:

* the loader of a policy file raises nothing but ConfigurationError, whatever the file holds, and what it loads can be
  sent to a worker and used there;
* a policy that was loaded decides about any message without an exception, twice in the same way;
* the list filter raises nothing but Unreadable, and no reader of JSON, whichever of two equal keys it takes and
  whether it minds their case or not, finds a forbidden name in what it lets through.

Run it for longer than the tests do with ``python tests/fuzz/fuzz_authorization.py --seconds 60 --seed 7``; a failure
prints the round's seed, which alone makes it come again (``--seed N --rounds 1``).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from actors.policy.authorization import ALLOWED, Rights
from actors.policy.jsonrpc import Refusal, parse_client
from actors.policy.list_filter import Unreadable, filtered
from ipc.authorization import LIST_METHODS, Authorization
from supervisor.settings.load import load
from supervisor.settings.problems import ConfigurationError

KEYS = ["name", "description", "effect", "principal", "upstream", "method", "tool", "prompt", "resource"]
TEXTS = [
    "allow", "deny", "*", "a*", "a", "", "static", "\\*", "\\", "tools/*", "tools/call", "resources/read", "ping",
    "file:///a/*", "file:///../a", "FILE:*", "x" * 2000, "\ud800", "\u202e", "\0", "rule-1", "default", "a**b",
    "%2e%2E/",
]  # fmt: skip
METHODS = [
    "tools/call", "tools/list", "prompts/get", "resources/read", "resources/subscribe", "completion/complete",
    "subscriptions/listen", "resources/templates/list", "TOOLS/call", "x",
]  # fmt: skip
URI_PIECES = [
    "file:", "//", "/", "a", "..", ".", "%2e", "%2F", "%25", "\\", "{", "}", "{x}", "\0", "é", "%ff", "?", "#", ":",
]  # fmt: skip
DAMAGE = [b"", b'"', b"{", b"]", b",", b"\xff", b"\\", b"1", b"\n", b"=", b"'"]
NAME_KEYS = ["name", "name", "Name", "n\\u0061me", "x"]


# --- the policy file


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(12 if depth < 3 else 8)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind < 8:
        return rng.choice([None, True, 1, -1.5, 10**400])
    if kind < 10:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice([*KEYS, "rules", "x"]): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _rule(rng: random.Random, number: int) -> Any:
    if rng.randrange(12) == 0:
        return _value(rng)
    rule: dict[str, Any] = {"effect": rng.choice(["allow", "deny"]), "name": f"r{number}"}
    good = ["*", "a*", "a", "tools/*", "tools/call", "file:///a/*", "\\*", "a*b*c", "file:///%41*"]
    keys = ["principal", "upstream", "method", rng.choice(["tool", "prompt", "resource"])]
    for key in rng.sample(keys, rng.randrange(4)):
        rule[key] = rng.choice(good) if rng.randrange(2) else rng.sample(good, rng.randrange(1, 4))
    if rng.randrange(6) == 0:
        rule[rng.choice([*KEYS, "x", "tol"])] = _value(rng)
    return rule


def policy_text(rng: random.Random) -> bytes:
    """A policy in JSON, often right."""
    document: Any = {"rules": [_rule(rng, number) for number in range(rng.randrange(6))]}
    if rng.randrange(10) == 0:
        document = _value(rng)
    return _damaged(rng, json.dumps(document).encode())


def toml_text(rng: random.Random) -> bytes:
    """The same in TOML."""
    lines = []
    for number in range(rng.randrange(5)):
        rule = _rule(rng, number)
        lines.append("[[rules]]")
        if isinstance(rule, dict):
            lines += [f"{key} = {json.dumps(value)}" for key, value in rule.items()]
    return _damaged(rng, "\n".join(lines).encode("utf-8", "surrogatepass"))


def _damaged(rng: random.Random, text: bytes) -> bytes:
    raw = bytearray(text)
    if rng.randrange(3) == 0:
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw) + 1)
            raw[at : at + rng.randrange(3)] = rng.choice(DAMAGE)
    return bytes(raw)


def loaded(content: bytes, suffix: str, directory: Path, default: str) -> Authorization | None:
    """What the gateway would start with; None when it would not."""
    file = directory / f"policy{suffix}"
    file.write_bytes(content)
    try:
        settings = load((), {"AUTHORIZATION_POLICY": str(file), "AUTHORIZATION_DEFAULT": default}, directory).settings
    except ConfigurationError as error:
        if error.problems:
            str(error).encode()  # what is printed can be
            return None
        raise
    sent = msgspec.msgpack.encode(settings.authorization)
    assert msgspec.msgpack.decode(sent, type=Authorization) == settings.authorization
    return settings.authorization


def check_policy(rng: random.Random, directory: Path) -> bool:
    """One round; whether the policy was a good one."""
    toml = rng.randrange(3) == 0
    default = rng.choice(["allow", "deny"])
    content = toml_text(rng) if toml else policy_text(rng)
    authorization = loaded(content, ".toml" if toml else ".json", directory, default)
    if authorization is None:
        return False
    for _ in range(5):
        rights = Rights(
            authorization.rules, default, rng.choice(["", "a", "ab", "idp|a"]),  # type: ignore[arg-type]
            rng.sample(["mcp:call", "mcp:read"], rng.randrange(3)), rng.choice(["a", "embedded"]),
        )  # fmt: skip
        uri = "".join(rng.choice(URI_PIECES) for _ in range(rng.randrange(12)))
        params = {
            "name": rng.choice(["a", "", "abc", uri]), "uri": uri, "ref": {"type": "ref/resource", "uri": uri},
            "notifications": {"resourceSubscriptions": [uri, "a"]},
        }  # fmt: skip
        body = {"jsonrpc": "2.0", "id": 1, "method": rng.choice(METHODS), "params": params}
        try:
            envelope = parse_client(json.dumps(body).encode())
        except Refusal:
            continue
        first = rights.refused_by(envelope)
        assert rights.refused_by(envelope) == first
        assert not (rights.unrestricted and first != ALLOWED)
        for method in LIST_METHODS:
            shown = rights.shown(method)
            if shown is not None:
                shown(uri)
    return True


# --- the filter


def answer(rng: random.Random) -> bytes:
    """An answer to tools/list."""
    pieces = []
    for _ in range(rng.randrange(6)):
        members = [f'"{rng.choice(NAME_KEYS)}": "{rng.choice("ab")}"']
        members += rng.sample(['"x":[{"name":"b"}]', '"d":"]}"', '"name":"b"', '"y":{"tools":[]}'], rng.randrange(3))
        rng.shuffle(members)
        pieces.append("{" + ",".join(members) + "}")
    gap = rng.choice(["", " ", "\n"])
    listed = "[" + f"{gap},{gap}".join(pieces) + gap + "]"
    members = [f'"tools":{gap}{listed}']
    extra = ['"nextCursor":"b"', f'"Tools":{listed}', f'"tools":{listed}', '"_meta":{"tools":[1]}']
    members += rng.sample(extra, rng.randrange(2))
    rng.shuffle(members)
    outer = [f'"result":{gap}' + "{" + ",".join(members) + "}", '"id":1', '"jsonrpc":"2.0"']
    outer += rng.sample(['"error":null', '"RESULT":{"tools":[{"name":"b"}]}'], rng.randrange(8) == 0)
    rng.shuffle(outer)
    return _damaged(rng, ("{" + ",".join(outer) + "}").encode())


def _names(pairs_of: Any) -> set[str]:
    """Every name of a tool that some reader finds, in a document of pairs (key, value) instead of objects."""
    found = set()
    for result in _members(pairs_of, "result"):
        for tools in _members(result, "tools"):
            for tool in tools if isinstance(tools, list) and not isinstance(tools, Pairs) else ():
                found.update(name for name in _members(tool, "name") if isinstance(name, str))
    return found


class Pairs(list[Any]):
    """An object's members in order, equal keys included."""


def _members(value: Any, key: str) -> list[Any]:
    return [member for name, member in value if name.casefold() == key] if isinstance(value, Pairs) else []


def check_filter(rng: random.Random) -> bool:
    """One round; whether something was let through."""
    raw = answer(rng)
    try:
        out = filtered(raw, "tools/list", lambda name: name == "a")
    except Unreadable:
        return False
    try:
        document = json.loads(out, object_pairs_hook=Pairs)
    except ValueError:
        raise AssertionError(f"no JSON: {out!r}") from None
    assert _names(document) <= {"a"}, out
    return True


TARGETS = ("policy", "filter")


def run_round(target: str, seed: int, directory: Path) -> bool:
    rng = random.Random(seed)
    return check_policy(rng, directory) if target == "policy" else check_filter(rng)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=sys.maxsize)
    options = parser.parse_args()
    seed, ends = options.seed, time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as directory:
        while time.monotonic() < ends and seed < options.seed + options.rounds:
            for target in TARGETS:
                try:
                    run_round(target, seed, Path(directory))
                except Exception:
                    sys.stderr.write(f"{target}: seed {seed}\n")
                    raise
            seed += 1
    sys.stderr.write(f"{seed - options.seed} rounds\n")


if __name__ == "__main__":
    main()
