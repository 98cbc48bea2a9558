"""Imports run downwards only: supervisor → ipc, actors → ipc, and nothing of ours below that.

So an import error in an actor cannot take the supervisor down, and policy can be tested without a loop, a clock or a
socket. Imports are found in the source, wherever they stand (inside functions and TYPE_CHECKING too).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("supervisor", "actors", "ipc", "ops")

# Nothing imports ops. It may read what the gateway reads and writes (its settings, its audit chain), and run nothing.
MAY_IMPORT = {
    "ipc": ("ipc",),
    "supervisor": ("supervisor", "ipc"),
    "actors": ("actors", "ipc"),
    "ops": ("ops", "ipc", "actors.policy", "supervisor.settings"),
}

POLICY_OF_OURS = ("actors.policy", "ipc.authorization", "ipc.content", "ipc.globs", "ipc.messages", "ipc.settings")
POLICY_THIRD_PARTY = {"msgspec", "attrs", "attr", "jwt", "re2", "jsonschema_rs"}

# The parts of the standard library that read clocks, files, sockets or processes, wait, or log. Whatever is random
# belongs here too: a decision that can't be repeated can't be tested.
IMPURE = frozenset(
    {
        "asyncio", "concurrent", "ctypes", "fcntl", "fileinput", "getpass", "glob", "http", "imaplib", "io", "logging",
        "mmap", "multiprocessing", "os", "pathlib", "poplib", "pty", "queue", "random", "resource", "sched", "secrets",
        "select", "selectors", "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess",
        "sys", "syslog", "tempfile", "termios", "threading", "time", "tty", "urllib.request", "webbrowser", "xmlrpc",
        "_thread",
    }
)  # fmt: skip


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))



def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports; for ``from a import b`` it is ``a.b``."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *([node.module] if node.module else []), alias.name])


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def upward_imports(package: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imports(path)
        if name.split(".", maxsplit=1)[0] in OURS and not any(is_in(name, allowed) for allowed in MAY_IMPORT[package])
    ]


def impure_imports() -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules("actors/policy")
        for line, name in imports(path)
        if not policy_may_import(name)
    ]


def policy_may_import(name: str) -> bool:
    top = name.split(".", maxsplit=1)[0]
    if top in OURS:
        return any(is_in(name, package) for package in POLICY_OF_OURS)
    if top in sys.stdlib_module_names:
        return not any(is_in(name, module) for module in IMPURE)
    return top in POLICY_THIRD_PARTY


@pytest.mark.parametrize("package", OURS)
def test_imports_run_downwards(package: str) -> None:
    """No module imports from a package of ours that is not below its own."""
    assert upward_imports(package) == []


def test_policy_is_pure() -> None:
    """Policy imports of the standard library only what does no I/O and knows no time, of ours only policy, messages
    and settings with their rules, and of others only msgspec, attrs, PyJWT, RE2 and the JSON Schema validator."""
    assert impure_imports() == []


def test_there_is_something_to_check() -> None:
    """The walk finds the modules, and what it looks for in them."""
    for package in OURS:
        assert modules(package)
    found = {name for _, name in imports(ROOT / "ipc" / "exchange.py")}
    assert {"ipc.errors.MalformedFrame", "trio", "time", "functools.partial"} <= found


def test_relative_and_nested_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import is seen whatever its form and wherever it stands."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "actors" / "policy" / "window.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from ..auth import main\nfrom . import scoring\nfrom ...supervisor import tree\n"
        "def f():\n    import os.path as p\n    from ipc import channel\n"
        "if TYPE_CHECKING:\n    import supervisor.tree\n"
    )
    assert list(imports(path)) == [
        (1, "actors.auth.main"),
        (2, "actors.policy.scoring"),
        (3, "supervisor.tree"),
        (5, "os.path"),
        (6, "ipc.channel"),
        (8, "supervisor.tree"),
    ]
    assert modules("actors") == [path]
    assert upward_imports("actors") == [
        "actors/policy/window.py:3 imports supervisor.tree",
        "actors/policy/window.py:8 imports supervisor.tree",
    ]
    assert "actors/policy/window.py:2 imports actors.policy.scoring" not in impure_imports()
    assert [line.split(" imports ")[1] for line in impure_imports()] == [
        "actors.auth.main",
        "supervisor.tree",
        "os.path",
        "ipc.channel",
        "supervisor.tree",
    ]
