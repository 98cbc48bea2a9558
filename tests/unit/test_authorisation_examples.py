"""The page about authorisation: each example is loaded as it stands there, and does what its table says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from actors.policy.authorization import ALLOWED, READ_METHODS, Rights
from actors.policy.jsonrpc import parse_client
from ipc.authorization import ALWAYS_ALLOWED
from supervisor.settings.load import load

PAGE = (Path(__file__).parents[2] / "ops" / "docs" / "authorisation.md").read_text(encoding="utf-8")


@attrs.frozen
class Example:
    suffix: str
    text: str
    default: str
    rows: tuple[tuple[str, str, str, str], ...]


def examples() -> list[Example]:
    """Each fenced policy with the table that follows it."""
    found = []
    for block in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        block = block.split("\n## ")[0]
        policy = re.search(r"```(json|toml)\n(.*?)```", block, re.DOTALL)
        default = re.search(r"With `AUTHORIZATION_DEFAULT=(allow|deny)`:", block)
        assert policy is not None
        assert default is not None
        rows = []
        for line in block[default.end() :].splitlines():
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == 4 and cells[0].startswith("`"):
                who, server, message = (cell.strip("`") for cell in cells[:3])
                rows.append((who, server, message, cells[3]))
        found.append(Example("." + policy[1], policy[2], default[1], tuple(rows)))
    return found


def test_every_example_is_found() -> None:
    """No policy on the page goes untested, and each has something to say."""
    assert len(examples()) == len(re.findall(r"```(?:json|toml)", PAGE)) == 4
    assert all(len(example.rows) >= 5 for example in examples())
    assert sum(len(example.rows) for example in examples()) == PAGE.count("| allowed |") + PAGE.count("| 403 `")


def params_for(method: str, target: str) -> dict[str, Any]:
    if method == "completion/complete":
        return {"ref": {"type": "ref/resource", "uri": target}}
    if method == "subscriptions/listen":
        return {"notifications": {"resourceSubscriptions": [target]}}
    return {"uri" if method.startswith("resources/") else "name": target} if target else {}


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.rows[0][3].strip("43 `"))
def test_an_example_does_what_its_table_says(example: Example, tmp_path: Path) -> None:
    """It loads without a warning where there are such servers, and every row comes true."""
    file = tmp_path / f"policy{example.suffix}"
    file.write_text(example.text, encoding="utf-8")
    servers = tmp_path / "mcp.json"
    names = {row[1] for row in example.rows} | {"wiki"}
    servers.write_text(json.dumps({"mcpServers": {name: {"command": "true"} for name in names}}))
    environ = {
        "AUTHORIZATION_POLICY": str(file),
        "AUTHORIZATION_DEFAULT": example.default,
        "MCP_CONFIG": str(servers),
        "PATH": "/usr/bin:/bin",
    }
    made = load((), environ, tmp_path)
    assert [str(warning) for warning in made.warnings if warning.variable == "AUTHORIZATION_POLICY"] == []
    settings = made.settings
    for who, server, message, answer in example.rows:
        principal = "" if who == "static" else who
        rights = Rights(
            settings.authorization.rules,
            settings.authorization_default,
            principal,
            ("mcp:call", "mcp:read"),
            server,
        )
        method, _, target = message.partition(" ")
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params_for(method, target)}
        refused = rights.refused_by(parse_client(json.dumps(body).encode()))
        expected = ALLOWED if answer == "allowed" else answer.removeprefix("403 `").removesuffix("`")
        assert refused == expected, (who, server, message)


def test_the_table_of_scopes_is_the_code_s() -> None:
    """Every method that a scope is enough for is named, and no other."""
    rows = {cells[1].strip(" `"): cells[2] for line in PAGE.splitlines() if len(cells := line.split("|")) == 4}
    named = {scope: set(re.findall(r"`([a-zA-Z_]+(?:/[a-zA-Z_/]+)?)`", rows[scope])) for scope in ("–", "mcp:read")}
    assert named == {"–": set(ALWAYS_ALLOWED), "mcp:read": set(READ_METHODS)}
