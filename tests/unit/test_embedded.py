"""The embedded MCP server: both eras, its tools, and what it says to nonsense."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ops.embedded.server import CALLS, LEGACY, MAX_SLEEPS, UPDATE_INTERVAL_NS, WELCOME, Server
from ops.embedded.stdio import MAX_LINE, _Lines
from ops.embedded.tools import TOOLS

SECOND = 1_000_000_000
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


class Channel:
    """The client's side of one server."""

    def __init__(self, version: str = "") -> None:
        self.server = Server()
        self.now = 0
        if version:
            self.call("initialize", {"protocolVersion": version, "capabilities": {}})

    def raw(self, line: bytes) -> list[dict[str, Any]]:
        return [json.loads(answer) for answer in self.server.receive(line, self.now)]

    def send(self, method: str, params: dict[str, Any], id: Any = 1) -> list[dict[str, Any]]:
        return self.raw(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode())

    def notify(self, method: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        return self.raw(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result or error of a call that is answered with nothing else."""
        [answer] = self.send(method, params)
        assert answer["id"] == 1
        return answer.get("result") or answer.get("error") or {}

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self.call("tools/call", {"name": name, "arguments": arguments})

    def at(self, seconds: float) -> list[dict[str, Any]]:
        self.now = int(seconds * SECOND)
        return [json.loads(line) for line in self.server.tick(self.now)]


@pytest.mark.parametrize(
    ("asked", "negotiated"),
    [
        *((version, version) for version in LEGACY),
        ("2025-03-26", "2024-11-05"),
        ("2026-07-28", "2025-11-25"),
        ("1.0", "2025-11-25"),
    ],
)
def test_version_negotiation(asked: str, negotiated: str) -> None:
    """A known version is agreed to; otherwise the newest that is older, or the newest."""
    result = Channel().call("initialize", {"protocolVersion": asked, "capabilities": {}})
    assert result["protocolVersion"] == negotiated
    assert set(result["capabilities"]) == {"logging", "prompts", "resources", "tools"}


def test_nothing_but_ping_before_initialize() -> None:
    """The legacy era begins with a handshake."""
    channel = Channel()
    assert channel.call("ping", {}) == {}
    assert channel.call("tools/list", {})["code"] == -32600


def test_modern_requests_need_no_handshake() -> None:
    """A modern request carries everything, and its answer has what 2026-07-28 asks of results."""
    channel = Channel()
    for method, member in (("server/discover", "supportedVersions"), ("tools/list", "tools"),
                           ("resources/list", "resources"), ("prompts/list", "prompts"),
                           ("resources/templates/list", "resourceTemplates")):
        result = channel.call(method, {"_meta": META})
        assert isinstance(result[member], list)
        assert result["resultType"] == "complete"
        assert result["ttlMs"] > 0
        assert result["cacheScope"] == "public"
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "portcullis-embedded"
    assert "structuredContent" in channel.call(
        "tools/call", {"_meta": META, "name": "add", "arguments": {"a": 1, "b": 2}}
    )


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({"io.modelcontextprotocol/protocolVersion": "1900-01-01"}, -32022),
        ({"io.modelcontextprotocol/protocolVersion": "2026-07-28"}, -32602),
        ({"io.modelcontextprotocol/protocolVersion": 7}, -32602),
        (META | {"io.modelcontextprotocol/logLevel": "loud"}, -32602),
        ({}, -32602),
    ],
)
def test_malformed_modern_requests(meta: dict[str, Any], code: int) -> None:
    """2026-07-28 basic, "_meta": what is missing or unknown is named with its own code."""
    error = Channel().call("server/discover", {"_meta": meta})
    assert error["code"] == code
    if code == -32022:
        assert error["data"] == {"supported": ["2026-07-28"], "requested": "1900-01-01"}


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel", "resources/subscribe"])
def test_legacy_methods_are_gone_in_the_modern_era(method: str) -> None:
    """What 2026-07-28 removed is not found there."""
    assert Channel().call(method, {"_meta": META, "uri": CALLS})["code"] == -32601


@pytest.mark.parametrize(
    ("line", "code", "identity"),
    [
        (b"not json", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"', -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":nope}}', -32700, None),
        (b"[]", -32600, None),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":[],"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', -32602, 1),
        (b'{"jsonrpc":"2.0","id":"a","method":"nope"}', -32601, "a"),
        (b'{"jsonrpc":"2.0","id":7,"method":"x","params":{"_meta":{"progressToken":null}}}', -32602, 7),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 9999 + b"1" + b"}" * 10_000, -32600, None),
    ],
)
def test_malformed_messages(line: bytes, code: int, identity: Any) -> None:
    """JSON-RPC 2.0 §5.1: the right code, and the id wherever it could be read."""
    [answer] = Channel("2025-11-25").raw(line)
    assert (answer["error"]["code"], answer["id"]) == (code, identity)


def test_notifications_and_responses_are_never_answered() -> None:
    """Not even wrong ones."""
    channel = Channel("2025-11-25")
    assert channel.notify("nope", {}) == []
    assert channel.raw(b'{"jsonrpc":"2.0","method":"nope","params":[]}') == []
    assert channel.raw(b'{"jsonrpc":"2.0","id":1,"result":{}}') == []
    assert channel.raw(b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}') == []


@pytest.mark.parametrize("identity", [0, -1, 2**53 - 1, 10**25, "1", "ü\"\\", ""])
def test_ids_come_back_as_they_were(identity: Any) -> None:
    """Value and type."""
    [answer] = Channel("2025-11-25").send("ping", {}, identity)
    assert (answer["id"], type(answer["id"])) == (identity, type(identity))


def test_echo_and_add() -> None:
    """What they promise, with structured content where it is declared."""
    channel = Channel("2025-11-25")
    assert channel.tool("echo", text="hé\n\u2028") == {"content": [{"type": "text", "text": "hé\n\u2028"}]}
    assert channel.tool("add", a=0.5, b=1) == {
        "content": [{"type": "text", "text": "1.5"}], "structuredContent": {"sum": 1.5}
    }
    assert channel.tool("add", a=1e308, b=1e308)["isError"]


def test_time() -> None:
    """UTC by default, any IANA zone by name, and an error that a model can act on for anything else."""
    channel = Channel("2025-11-25")
    assert channel.tool("time")["structuredContent"]["timezone"] == "UTC"
    assert channel.tool("time", timezone="Asia/Kolkata")["structuredContent"]["offset_s"] == 19_800
    for name in ("Nowhere/At_All", "../../etc/passwd", "", "\0", "/etc/localtime", "Europe"):
        result = channel.tool("time", timezone=name)
        assert result["isError"]
        assert "IANA" in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("echo", {}, "'text' is missing"),
        ("echo", {"text": 1}, "type string"),
        ("echo", {"text": "", "more": 1}, "unknown argument"),
        ("add", {"a": True, "b": 1}, "type number"),
        ("sleep", {"seconds": -1}, "between"),
        ("sleep", {"seconds": 61}, "between"),
        ("sleep", {"seconds": 1, "steps": 1.5}, "type integer"),
        ("log", {"message": "x", "level": "loud"}, "one of"),
    ],
)
def test_wrong_arguments_are_a_result(name: str, arguments: dict[str, Any], said: str) -> None:
    """Input validation is reported to the model, not as a protocol error (2025-11-25 tools, "Error Handling")."""
    result = Channel("2025-11-25").tool(name, **arguments)
    assert result["isError"]
    assert said in result["content"][0]["text"]


def test_unknown_names_are_errors() -> None:
    """Tools, prompts and resources; a missing resource has the code of its era."""
    channel = Channel("2025-11-25")
    assert channel.tool("nope")["code"] == -32602
    assert channel.call("prompts/get", {"name": "nope"})["code"] == -32602
    assert channel.call("prompts/get", {"name": "greet"})["code"] == -32602
    assert channel.call("resources/read", {"uri": "x:"})["code"] == -32002
    assert channel.call("resources/read", {"uri": "x:", "_meta": META})["code"] == -32602
    assert channel.call("tools/list", {"cursor": "x"})["code"] == -32602


def test_schemas_fit_their_version() -> None:
    """Every tool has an object schema; 2024-11-05 is given nothing that it doesn't know."""
    for version in LEGACY:
        tools = Channel(version).call("tools/list", {})["tools"]
        assert [tool["name"] for tool in tools] == [tool.name for tool in TOOLS]
        for tool in tools:
            assert tool["inputSchema"]["type"] == "object"
            assert (set(tool) == {"name", "description", "inputSchema"}) == (version == "2024-11-05")
    assert "structuredContent" not in Channel("2024-11-05").tool("add", a=1, b=1)


def test_sleep_reports_progress_and_answers() -> None:
    """As many notifications as asked for, in time, with the client's token; the answer comes last."""
    channel = Channel("2025-11-25")
    params = {"name": "sleep", "arguments": {"seconds": 2, "steps": 4}, "_meta": {"progressToken": "t"}}
    assert channel.send("tools/call", params, "s") == []
    assert channel.server.next_deadline_ns() == UPDATE_INTERVAL_NS
    seen = [
        [m["params"]["progress"] if "params" in m else m["id"] for m in channel.at(seconds)]
        for seconds in (0.4, 0.5, 1.0, 1.4, 2.0)
    ]
    assert seen == [[], [1], [2], [], [3, 4, "s"]]
    assert channel.server.next_deadline_ns() is None


def test_sleep_without_a_token_only_answers() -> None:
    """Progress goes to those who asked for it."""
    channel = Channel("2025-11-25")
    channel.send("tools/call", {"name": "sleep", "arguments": {"seconds": 1}})
    assert channel.at(0.9) == []
    assert [message["id"] for message in channel.at(1)] == [1]


def test_sleep_can_be_cancelled() -> None:
    """Nothing more comes for a cancelled call; another one with an id of the other type goes on."""
    channel = Channel("2025-11-25")
    for identity in (1, "1"):
        channel.send("tools/call", {"name": "sleep", "arguments": {"seconds": 1}}, identity)
    assert channel.notify("notifications/cancelled", {"requestId": 1}) == []
    assert channel.notify("notifications/cancelled", {"requestId": "unknown"}) == []
    assert [message["id"] for message in channel.at(5)] == ["1"]


def test_sleeps_are_bounded() -> None:
    """Past the bound a call is refused as a result."""
    channel = Channel("2025-11-25")
    for number in range(MAX_SLEEPS):
        channel.send("tools/call", {"name": "sleep", "arguments": {"seconds": 60}}, number)
    [answer] = channel.send("tools/call", {"name": "sleep", "arguments": {"seconds": 60}}, "more")
    assert answer["result"]["isError"]


def test_log_levels() -> None:
    """Legacy: the session's level. Modern: only for a request that asks, at its level."""
    legacy = Channel("2025-11-25")
    say = {"name": "log", "arguments": {"message": "m", "level": "info"}}
    assert len(legacy.send("tools/call", say)) == 2
    legacy.call("logging/setLevel", {"level": "warning"})
    assert len(legacy.send("tools/call", say)) == 1
    assert legacy.call("logging/setLevel", {"level": "loud"})["code"] == -32602
    modern = Channel()
    assert len(modern.send("tools/call", say | {"_meta": META})) == 1
    for level, messages in (("debug", 2), ("info", 2), ("error", 1)):
        meta = META | {"io.modelcontextprotocol/logLevel": level}
        answers = modern.send("tools/call", say | {"_meta": meta})
        assert len(answers) == messages
        assert answers[-1]["id"] == 1


def test_legacy_subscription() -> None:
    """Many calls are one update; without a subscription there is none; a new handshake forgets it."""
    channel = Channel("2025-11-25")
    channel.tool("echo", text="")
    assert channel.at(1) == []
    channel.call("resources/subscribe", {"uri": CALLS})
    for _ in range(3):
        channel.tool("echo", text="")
    assert channel.at(2) == [
        {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": CALLS}}
    ]
    assert json.loads(channel.call("resources/read", {"uri": CALLS})["contents"][0]["text"]) == {"calls": 4}
    channel.call("resources/unsubscribe", {"uri": CALLS})
    channel.tool("echo", text="")
    assert channel.at(3) == []


def test_modern_subscriptions() -> None:
    """Acknowledged first with what is honoured; each notification names its own subscription; ended by cancellation,
    or at the end of input with a result."""
    channel = Channel()
    wanted = {"resourceSubscriptions": [CALLS, "x:unknown"], "toolsListChanged": True}
    for identity in (1, "1"):
        [acknowledged] = channel.send("subscriptions/listen", {"_meta": META, "notifications": wanted}, identity)
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["params"] == {
            "_meta": {SUBSCRIPTION: identity}, "notifications": {"resourceSubscriptions": [CALLS]}
        }
    channel.send("subscriptions/listen", {"_meta": META, "notifications": {"resourceSubscriptions": [WELCOME]}}, 3)
    channel.call("tools/call", {"_meta": META, "name": "time"})
    assert [m["params"]["_meta"][SUBSCRIPTION] for m in channel.at(1)] == [1, "1"]
    channel.notify("notifications/cancelled", {"requestId": "1"})
    channel.call("tools/call", {"_meta": META, "name": "time"})
    assert [m["params"]["_meta"][SUBSCRIPTION] for m in channel.at(2)] == [1]
    ended = [json.loads(line) for line in channel.server.close()]
    assert [(m["id"], m["result"]["_meta"][SUBSCRIPTION]) for m in ended] == [(1, 1), (3, 3)]
    assert channel.call("subscriptions/listen", {"_meta": META, "notifications": {"resourceSubscriptions": [1]}})[
        "code"
    ] == -32602


def test_eras_do_not_touch() -> None:
    """The legacy session's level and subscriptions are nothing to modern requests on the same channel."""
    channel = Channel("2025-11-25")
    channel.call("logging/setLevel", {"level": "debug"})
    say = {"name": "log", "arguments": {"message": "m"}, "_meta": META}
    assert len(channel.send("tools/call", say)) == 1


def test_lines() -> None:
    """However the bytes arrive; blank lines don't count; a line that is too long is named and skipped."""
    lines = _Lines()
    assert lines.feed(b'{"a"') == []
    assert lines.feed(b":1}\n\n  \r\n{}") == [b'{"a":1}']
    assert lines.feed(b"\n") == [b"{}"]
    assert lines.feed(b"x" * MAX_LINE) == []
    assert lines.feed(b"xx") == []
    assert lines.feed(b"x\n{}\n") == [None, b"{}"]


def test_as_a_program() -> None:
    """Lines in, lines out; it ends with its input, with status 0 and nothing on stderr."""
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "é"}}},
    ]
    given = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    done = subprocess.run(
        [sys.executable, "-m", "ops.embedded"], input=given, capture_output=True, timeout=60, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [1, 2]
    assert answers[1]["result"]["content"][0]["text"] == "é"
    assert done.stderr == b""
