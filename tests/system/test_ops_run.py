"""``ops/run`` sets up its environment once, safely, and then gets out of the way.

The Python that it finds here is a stand-in, a shell script that makes "environments" in an instant and records what is
asked of it; so the tests need no package index. ``ops/test`` shares all of the set-up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import attrs
import pytest
from gateway import ROOT

# As the interpreter of the system: it makes environments whose own python is the script below.
SYSTEM_PYTHON = """#!/bin/sh
case "$1 $2" in
"-c "*) exit "${STAND_IN_OLD:-0}" ;;
"-m venv")
    echo "venv" >>"$STAND_IN_LOG"
    mkdir -p "$3/bin"
    cp "$STAND_IN_VENV_PYTHON" "$3/bin/python"
    ;;
esac
"""

VENV_PYTHON = """#!/bin/sh
case "$*" in
"-c import pip") exit 0 ;;
*" install "*)
    echo "install $*" >>"$STAND_IN_LOG"
    [ ! -e "$STAND_IN_BROKEN" ] || { echo "no index today" >&2; exit 1; }
    ;;
"-m supervisor"*)
    shift 2
    printf '%s\\n' "$$" "$PWD" "$PYTHONSAFEPATH" "$@"
    exit 7
    ;;
esac
"""


@attrs.define
class Checkout:
    """A copy of what ops/run needs, and a world in which only the stand-in is Python."""

    root: Path
    bin: Path
    log: Path
    broken: Path
    elsewhere: Path

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "ops" / "run"), *arguments],
            cwd=self.elsewhere,
            env={
                "PATH": str(self.bin),
                "STAND_IN_LOG": str(self.log),
                "STAND_IN_BROKEN": str(self.broken),
                "STAND_IN_VENV_PYTHON": str(self.bin / "venv-python"),
                **variables,
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err

    def done(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root, tools, elsewhere = tmp_path / "check out", tmp_path / "bin", tmp_path / "elsewhere"
    (root / "ops" / "requirements").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("pyproject.toml", "ops/run", "ops/environment.sh", "ops/requirements/run.txt"):
        shutil.copy(ROOT / name, root / name)
    tools.mkdir()
    for name in ("sh", "cat", "cp", "dirname", "flock", "mkdir", "mv", "rm", "sha256sum"):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name, text in (("python3.11", SYSTEM_PYTHON), ("venv-python", VENV_PYTHON)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return Checkout(root, tools, tmp_path / "log", tmp_path / "broken", elsewhere)


def test_the_first_start_sets_up_and_the_next_ones_do_not(checkout: Checkout) -> None:
    """Locked packages with hashes, then the project; the second start installs nothing and says nothing."""
    assert checkout.run()[0] == 7
    assert checkout.done() == ["venv", "install", "install"]
    locked, itself = checkout.log.read_text().splitlines()[1:]
    assert "--require-hashes --no-deps" in locked
    assert "--no-deps --no-build-isolation --editable" in itself
    code, _, err = checkout.run()
    assert (code, err) == (7, "")
    assert checkout.done() == ["venv", "install", "install"]


def test_it_becomes_the_gateway(checkout: Checkout) -> None:
    """The process that was started is the gateway: its pid, exit code, working directory and arguments."""
    checkout.run()
    process = checkout.start("--flag", "with space", "")
    out, _ = process.communicate(timeout=60)
    assert out.split("\n") == [str(process.pid), str(checkout.elsewhere), "1", "--flag", "with space", "", ""]
    assert process.returncode == 7


def test_a_set_up_that_failed_is_gone_on_with(checkout: Checkout) -> None:
    """Nothing half-made is ever started: the error is shown, and the next start installs again."""
    checkout.broken.touch()
    code, out, err = checkout.run()
    assert (code, out) == (1, [])
    assert "no index today" in err
    checkout.broken.unlink()
    assert checkout.run()[0] == 7
    assert checkout.done() == ["venv", "install", "install", "install"]


@pytest.mark.parametrize("what", ["ops/requirements/run.txt", "pyproject.toml", "moved"])
def test_a_change_of_what_it_was_made_from_is_noticed(checkout: Checkout, what: str, tmp_path: Path) -> None:
    """A new lock, a new pyproject.toml: brought up to date. The tree in another place: made anew, because its scripts
    name the old one."""
    checkout.run()
    if what == "moved":
        checkout.root = checkout.root.rename(tmp_path / "moved")
    else:
        with (checkout.root / what).open("a") as file:
            file.write("# changed\n")
    assert checkout.run()[0] == 7
    assert checkout.done().count("install") == 4
    assert checkout.done().count("venv") == (2 if what == "moved" else 1)


def test_two_first_starts_at_once_set_up_once(checkout: Checkout) -> None:
    """The second waits for the first, and then finds everything done."""
    both = [checkout.start(), checkout.start()]
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [7, 7]
    assert checkout.done() == ["venv", "install", "install"]


@pytest.mark.parametrize("variables", [{"STAND_IN_OLD": "1"}, {"PYTHON": "no-such-python"}])
def test_without_a_python_it_says_what_to_install(checkout: Checkout, variables: dict[str, str]) -> None:
    """Too old or not there: an error in words, and nothing left behind that would pass for an environment."""
    code, out, err = checkout.run(**variables)
    assert (code, out) == (1, [])
    assert "Python 3.11" in err
    assert "apt-get install" in err
    assert not os.path.lexists(checkout.root / ".venv")
