"""The repository itself: locks, entry points, scripts, documents."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ops.cli.version import version

ROOT = Path(__file__).parents[2]
OURS = ("supervisor", "actors", "ipc", "ops")
LOCKS = sorted((ROOT / "ops" / "requirements").glob("*.txt"))
NODE_LOCK = ROOT / "tests" / "conformance" / "node" / "package-lock.json"
SCRIPTS = [ROOT / name for name in ("ops/run", "ops/test", "ops/fuzz", "ops/requirements/compile", ".ci/run")]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "ops").rglob("*.md"),
]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(path: Path) -> dict[str, str]:
    """Name to version of a lock file."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", path.read_text(), re.MULTILINE))


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0]).lower()


def test_there_is_a_lock_for_every_environment() -> None:
    """Each .in file has its lock, and the two of the project itself are there."""
    names = {path.stem for path in (ROOT / "ops" / "requirements").glob("*.in")}
    assert {path.stem for path in LOCKS} == names | {"run", "test"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_a_hash_for_everything_and_no_address(path: Path) -> None:
    """What is installed is what was locked, wherever an installer is configured to get it from."""
    text = path.read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|@ ", text)
    joined = text.replace("\\\n", " ")
    requirements = [line for line in joined.splitlines() if line and not line.startswith("#")]
    assert requirements
    for requirement in requirements:
        assert re.fullmatch(r"[a-z0-9.-]+==\S+(\s+--hash=sha256:[0-9a-f]{64})+\s*", requirement), requirement[:60]


def test_the_node_lock_has_a_hash_for_everything_and_no_address() -> None:
    """npm's lock, too."""
    packages = json.loads(NODE_LOCK.read_text())["packages"]
    del packages[""]
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert package["integrity"].startswith("sha512-"), name


def test_what_is_declared_is_locked() -> None:
    """No dependency was added without locking it anew."""
    table = project()["project"]
    run, test = (locked(ROOT / "ops" / "requirements" / f"{name}.txt") for name in ("run", "test"))
    assert {canonical(one) for one in table["dependencies"]} <= set(run)
    assert {canonical(one) for one in table["optional-dependencies"]["test"]} <= set(test)


def imported(*folders: str) -> set[str]:
    """The top-level names of everything that is imported below these folders and is not the standard library's."""
    found = set()
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    beside = {path.stem for path in files} | {path.name for path in (ROOT / "tests").iterdir()}
    for path in files:
        if {".envs", "node_modules", "scripts"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(OURS) - beside


@pytest.mark.parametrize("extra", ["", "test"])
def test_what_is_imported_is_declared(extra: str) -> None:
    """No module works only because something else happens to bring its dependency along, or a developer has it."""
    table = project()["project"]
    declared = {canonical(one) for one in table["dependencies"]}
    names = imported(*OURS)
    if extra:
        declared |= {canonical(one) for one in table["optional-dependencies"][extra]}
        names = imported("tests")
    distributions = metadata.packages_distributions()
    missing = {name for name in names if not {canonical(one) for one in distributions.get(name, [name])} & declared}
    assert not missing


def test_tests_run_on_what_is_released() -> None:
    """ops/test installs into the environment of ops/run: every version that both lock is the same."""
    run, test = (locked(ROOT / "ops" / "requirements" / f"{name}.txt") for name in ("run", "test"))
    assert run.items() <= test.items()


@pytest.mark.parametrize(("name", "target"), sorted(project()["project"]["scripts"].items()))
def test_each_console_script_shows_its_help(name: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its module can be imported, and --help names the command."""
    module, _, function = target.partition(":")
    main = getattr(importlib.import_module(module), function)
    try:
        code = main(["--help"])
    except SystemExit as end:
        code = end.code
    assert code in (0, None)
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(path: Path) -> None:
    """For the plain POSIX shell of a minimal system."""
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n", str(path)], check=True)


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """The anchors of headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """Relative links point to files that exist, and to headings in them."""
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_changelog_knows_this_version() -> None:
    """The version has one home, pyproject.toml; the changelog either has it or collects what comes next."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[?(Unreleased|" + re.escape(version()) + r")\b", text, re.MULTILINE)
    assert version() == project()["project"]["version"]


def test_the_licence_is_whole() -> None:
    """Apache-2.0, as pyproject.toml says."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["project"]["license"] == "Apache-2.0"
