"""The servers behind the gateway, from an ``mcpServers`` file, a URL or a command line."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ipc.settings import Upstream
from supervisor.settings import ConfigurationError, load, upstreams
from supervisor.settings.show import answer

PATH = os.environ["PATH"]


def read(directory: Path, servers: Any, **environ: str) -> tuple[Upstream, ...]:
    text = servers if isinstance(servers, str) else json.dumps({"mcpServers": servers})
    (directory / "servers.json").write_text(text)
    return load(["--config", "servers.json"], {"PATH": PATH, **environ}, directory).settings.upstreams


def problems(directory: Path, servers: Any, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(directory, servers, **environ)
    return [str(problem) for problem in caught.value.problems]


def single(directory: Path, text: str) -> Upstream:
    [upstream] = load([], {"PATH": PATH, "MCP_UPSTREAM": text}, directory).settings.upstreams
    return upstream


def test_a_host_s_own_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """Order kept, unknown keys of other hosts ignored, disabled servers left out."""
    (tmp_path / "work").mkdir()
    found = read(tmp_path, {
        "time": {"command": "true", "args": ["--tz", "UTC"], "alwaysAllow": ["x"]},
        "off": {"command": "nothing", "disabled": True},
        "git": {"type": "stdio", "command": "true", "env": {"TOKEN": "${SECRET}"}, "cwd": "work",
                "instance": "per-session", "timeoutMs": 5, "maxTimeoutMs": 50, "slowToolCalls": True},
        "db": {"url": "tcp://[::1]:9000"},
    }, SECRET="s3")  # fmt: skip
    assert found == (
        Upstream(name="time", kind="stdio", command="true", args=("--tz", "UTC")),
        Upstream(name="git", kind="stdio", command="true", env={"TOKEN": "s3"}, cwd=str(tmp_path / "work"),
                 instance="per-session", timeout_ms=5, max_timeout_ms=50, slow_tool_calls=True),
        Upstream(name="db", kind="tcp", url="tcp://[::1]:9000", host="::1", port=9000),
    )  # fmt: skip


def test_variables_are_expanded_everywhere(tmp_path: Path) -> None:
    """``${VAR}``, ``${env:VAR}`` and ``${VAR:-default}``, from the environment and from .env, once."""
    (tmp_path / ".env").write_text("FROM_DOTENV=d\nBOTH=dotenv\n")
    [found] = read(
        tmp_path,
        {"a": {"command": "${CMD}", "args": ["${env:BOTH}-${FROM_DOTENV}", "${NONE:-fall back}", "$HOME", "$"],
               "env": {"X": "${ONCE}"}}},
        CMD="true", BOTH="environment", ONCE="${CMD}",
    )  # fmt: skip
    assert (found.command, found.args) == ("true", ("environment-d", "fall back", "$HOME", "$"))
    assert found.env == {"X": "${CMD}"}


def test_unset_variables_are_errors_with_server_and_key(tmp_path: Path) -> None:
    """All of them."""
    server = {"command": "${NO}", "args": ["x", "${NO}"], "env": {"E": "${1bad} ${open"}}
    assert [problem.partition("server 'a', ")[2] for problem in problems(tmp_path, {"a": server})] == [
        "env, 'E': ${1bad} is no variable's name",
        "env, 'E': ${open} is no variable's name",
        "command: ${NO} is not set",
        "args[1]: ${NO} is not set",
    ]


@pytest.mark.parametrize(
    ("server", "where"),
    [
        ([], "server 'a': must be a JSON object"),
        ({}, "server 'a': needs"),
        ({"command": "true", "url": "tcp://h:1"}, "server 'a': needs"),
        ({"command": ""}, "server 'a', command:"),
        ({"command": 1}, "server 'a', command:"),
        ({"command": "true", "args": "x"}, "server 'a', args:"),
        ({"command": "true", "args": [1]}, "server 'a', args:"),
        ({"command": "true", "env": {"A": 1}}, "server 'a', env:"),
        ({"command": "true", "env": {"A=B": "1"}}, "server 'a', env, 'A=B':"),
        ({"command": "true", "cwd": "nowhere"}, "server 'a', cwd:"),
        ({"command": "true\0"}, "server 'a': a command line"),
        ({"command": "true", "headers": {}}, "server 'a', headers:"),
        ({"command": "true", "instance": "many"}, "server 'a', instance:"),
        ({"command": "true", "timeoutMs": -1}, "server 'a', timeoutMs:"),
        ({"command": "true", "timeoutMs": True}, "server 'a', timeoutMs:"),
        ({"command": "true", "timeoutMs": 0}, "server 'a', timeoutMs:"),
        ({"command": "true", "maxTimeoutMs": 0}, "server 'a', maxTimeoutMs:"),
        ({"command": "true", "timeoutMs": 10, "maxTimeoutMs": 9}, "server 'a', maxTimeoutMs:"),
        ({"command": "true", "type": "http"}, "server 'a', type: is http"),
        ({"command": "true", "type": "sse"}, "server 'a', type:"),
        ({"command": "true", "type": 5}, "server 'a', type:"),
        ({"command": "true", "disabled": "yes"}, "server 'a', disabled:"),
        ({"command": "true", "slowToolCalls": 1}, "server 'a', slowToolCalls:"),
        ({"url": 5}, "server 'a', url:"),
        ({"url": "ftp://h"}, "server 'a', url: must begin"),
        ({"url": "tcp://h"}, "server 'a', url: names no port"),
        ({"url": "tcp://h:0"}, "server 'a', url: names no port"),
        ({"url": "tcp://h:99999"}, "server 'a', url: is no URL"),
        ({"url": "tcp://u:p@h:1"}, "server 'a', url: must be tcp://"),
        ({"url": "tcp://h:1/x"}, "server 'a', url: must be tcp://"),
        ({"url": "tcp://:1"}, "server 'a', url: names no host"),
        ({"url": "tcp://h:1", "headers": {"A": "b"}}, "server 'a', url: TCP has no headers"),
        ({"url": "tcp://h:1", "headers": {"A B": "b"}}, "server 'a', headers, 'A B':"),
        ({"url": "tcp://h:1", "headers": {"A": "b\n"}}, "server 'a', headers, 'A':"),
    ],
)  # fmt: skip
def test_each_mistake_names_server_and_key(tmp_path: Path, server: Any, where: str) -> None:
    """One mistake, one error."""
    found = problems(tmp_path, {"a": server})
    assert len(found) == 1
    assert found[0].startswith(f"MCP_CONFIG (flag --config): {where}")


@pytest.mark.parametrize(
    ("url", "kind"),
    [("ws://h/x", "ws"), ("wss://h", "ws"), ("http://h:1/mcp?a=%20", "http"), ("HTTPS://h/mcp", "http")],
)
def test_network_transports_are_read_with_their_headers(tmp_path: Path, url: str, kind: Any) -> None:
    """For MCP_CONFIG and MCP_UPSTREAM alike; variables are expanded in both."""
    assert single(tmp_path, url) == Upstream(name="default", kind=kind, url=url)
    [found] = read(tmp_path, {"a": {"url": url.replace("h", "${H}", 1) if url[0] == "w" else url,
                                    "headers": {"Authorization": "Bearer ${K}"}}}, H="h", K="k")  # fmt: skip
    assert found == Upstream(name="a", kind=kind, url=url, headers={"Authorization": "Bearer k"})


@pytest.mark.parametrize(("kind", "url"), [
    ("http", "http://h"), ("streamable-http", "http://h"), ("streamableHttp", "http://h"), ("websocket", "ws://h"),
    ("ws", "wss://h"),
])  # fmt: skip
def test_the_types_that_hosts_write(tmp_path: Path, kind: str, url: str) -> None:
    """Each agrees with its URL; the replaced HTTP+SSE transport is refused in words."""
    assert len(read(tmp_path, {"a": {"type": kind, "url": url}})) == 1
    other = "http://h" if url.startswith("w") else "ws://h"
    assert "but the server is given as" in problems(tmp_path, {"a": {"type": kind, "url": other}})[0]
    assert "replaced by Streamable HTTP" in problems(tmp_path, {"a": {"type": "sse", "url": "http://h"}})[0]


@pytest.mark.parametrize(
    "url", ["http://u:p@h/", "http://h/#x", "http://h/a b", "http://h/ä", "http://h/\n", "ws://h:0/", "ws:///x"]
)
def test_a_url_that_can_not_be_requested(tmp_path: Path, url: str) -> None:
    """One error, without the URL's own text."""
    [found] = problems(tmp_path, {"a": {"url": url}})
    assert found.startswith("MCP_CONFIG (flag --config): server 'a', url: ")
    assert "u:p" not in found


@pytest.mark.parametrize(
    "name",
    ["Host", "content-LENGTH", "Transfer-Encoding", "Connection", "Mcp-Session-Id", "mcp-protocol-version", "Mcp-Name",
     "Sec-WebSocket-Key", "Accept", "Upgrade", "Mcp-Param-X"],
)  # fmt: skip
def test_headers_that_are_the_gateways_own(tmp_path: Path, name: str) -> None:
    """What would contradict the request that it stands in."""
    [found] = problems(tmp_path, {"a": {"url": "http://h", "headers": {name: "x"}}})
    assert "is set by the gateway itself" in found


def test_a_header_twice_or_too_long(tmp_path: Path) -> None:
    """Names have no case (RFC 9110 §5.1)."""
    assert "twice" in problems(tmp_path, {"a": {"url": "http://h", "headers": {"X-A": "1", "x-a": "2"}}})[0]
    assert "longer" in problems(tmp_path, {"a": {"url": "http://h", "headers": {"X-A": "1" * 8193}}})[0]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "ä", "a" * 65, "a?b", "-a", "%61"])
def test_a_name_that_is_no_path_segment_is_refused(tmp_path: Path, name: str) -> None:
    """It has to work as /ws/NAME."""
    assert "part of a path" in problems(tmp_path, {name: {"command": "true"}})[0]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "line 1 column 2"),
        ("[]", "mcpServers"),
        ("5", "mcpServers"),
        ("null", "mcpServers"),
        ('{"mcpServers": []}', "mcpServers"),
        ('{"servers": {}}', "mcpServers"),
        ('{"mcpServers": {}}', "has no server"),
        ('{"mcpServers": {"a": {"command": "x", "disabled": true}}}', "every server is disabled"),
        ('{"mcpServers": {"a": {"command": "true"}, "a": {"command": "true"}}}', "stands twice"),
        ("[" * 100_000, ""),
        ('{"mcpServers": ' + "1" * 5000 + "}", "number that is too long"),
    ],
)
def test_a_file_that_is_no_server_list_is_one_error(tmp_path: Path, text: str, part: str) -> None:
    """With the place, where there is one."""
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert part in found[0]


def test_a_missing_binary_and_misspelt_keys_are_only_warned_of(tmp_path: Path) -> None:
    """The other servers work meanwhile."""
    (tmp_path / "s.json").write_text(
        json.dumps({"mcpServers": {"a": {"command": "no-such-binary-at-all", "arg": ["x"]}}})
    )
    loaded = load(["--config", "s.json"], {"PATH": PATH}, tmp_path)
    text = "\n".join(map(str, loaded.warnings))
    assert "server 'a', command: is not found" in text
    assert "key 'arg' is ignored; did you mean args?" in text


def test_a_value_is_never_shown(tmp_path: Path) -> None:
    """Neither arguments, nor environment, nor URLs, in errors and in --print-config."""
    secret = "hunter2"
    found = problems(tmp_path, {
        "a": {"command": "true", "args": [f"{secret}${{NO}}"], "env": {"A": f"{secret}${{NO}}"}},
        "b": {"url": f"tcp://u:{secret}@h:1"}, "c": {"url": f"{secret}://h"}, "d": {"command": f"{secret}\0"},
    })  # fmt: skip
    assert secret not in "".join(found)
    with pytest.raises(ConfigurationError) as caught:
        single(tmp_path, f"run '{secret}")
    assert secret not in str(caught.value)


def test_one_upstream_by_url_or_command_line(tmp_path: Path) -> None:
    """Words as a shell splits them; nothing is run by a shell."""
    assert single(tmp_path, "tcp://127.0.0.1:9") == Upstream(
        name="default", kind="tcp", url="tcp://127.0.0.1:9", host="127.0.0.1", port=9
    )
    found = single(tmp_path, "true 'a b' \"c;d\" $HOME")
    assert (found.name, found.command, found.args) == ("default", "true", ("a b", "c;d", "$HOME"))


def test_of_file_and_single_upstream_the_overriding_source_wins(tmp_path: Path) -> None:
    """Two of the same rank are an error."""
    (tmp_path / "s.json").write_text('{"mcpServers": {"a": {"command": "true"}}}')
    environ = {"PATH": PATH, "MCP_UPSTREAM": "true x"}
    assert load(["--config", "s.json"], environ, tmp_path).settings.upstreams[0].name == "a"
    with pytest.raises(ConfigurationError, match="only one can be"):
        load([], {**environ, "MCP_CONFIG": "s.json"}, tmp_path)
    (tmp_path / ".env").write_text("MCP_CONFIG=s.json\n")
    assert load([], environ, tmp_path).settings.upstreams[0].name == "default"


def test_the_embedded_server_can_be_started_from_anywhere() -> None:
    """Nothing of the working directory is imported."""
    embedded = upstreams.embedded()
    assert embedded.args == ("-P", "-m", "ops.embedded")
    assert Path(embedded.command).is_absolute()


def test_what_a_variable_stands_for_is_not_shown(tmp_path: Path) -> None:
    """--print-config shows commands, directories and addresses as they are written, the variables' names in them."""
    servers = {
        "a": {"command": "${KEY}/bin/server", "cwd": "${DIRECTORY}"},
        "b": {"url": "tcp://${HOST:-127.0.0.1}:9"},
        "c": {"command": "plain"},
    }
    (tmp_path / "s3cret-directory").mkdir()
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": servers}))
    environ = {
        "KEY": "s3cret-key",
        "HOST": "s3cret-host",
        "DIRECTORY": "s3cret-directory",
    }
    out, err = io.StringIO(), io.StringIO()
    assert answer(["--config", "servers.json", "--print-config"], environ, tmp_path, out, err) == 0
    assert "s3cret" not in out.getvalue() + err.getvalue()
    for shown in ("${KEY}/bin/server", "${DIRECTORY}", "tcp://${HOST:-127.0.0.1}:9", "plain (0 arguments)"):
        assert shown in out.getvalue()
