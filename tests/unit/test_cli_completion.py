"""``mcp-admin completion``: the scripts in the shells that they are for."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from terminal import on_terminal

from ops.cli import admin
from ops.cli.completion import COMMANDS, SHELLS, script

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")

# What bash's own completion would do with the words, and what comes of it.
ASK = """
compopt() { :; }
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
"_${1//-/_}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "portcullis.bash"
    path.write_text(script("bash"))
    return path


def completed(written: Path, *words: str) -> set[str]:
    done = subprocess.run(
        ["bash", "--norc", "-uc", ASK, "ask", str(written), *words], capture_output=True, text=True, check=True,
        cwd=written.parent,
    )  # fmt: skip
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("mcp-admin", "bre"), {"breaker"}),
        (("mcp-admin", "breaker", ""), {"list", "reset"}),
        (("mcp-admin", "breaker", "reset", "--"), {"--help", "--json", "--state-dir", "--url"}),
        (("mcp-admin", "top", "--o"), {"--once"}),
        (("mcp-admin", "block", "192.0.2.1", "--f"), {"--for"}),
        # A value that is called like a subcommand is a value.
        (("mcp-admin", "block", "--for", "top", "--f"), {"--for"}),
        (("mcp-admin", "completion", ""), set(SHELLS)),
        (("mcp-security-audit", "--severity", "w"), {"warning"}),
        (("mcp-security-audit", "verify", "--h"), {"--head", "--help"}),
        (("mcp-token", "issue", "--scope", "mcp"), {"mcp:call", "mcp:read"}),
        (("mcp-health", "--url", ""), set()),
        (("mcp-secure-client", ""), {"ws", "tcp", "stdio"}),
        (("mcp-connections", "--w"), {"--watch"}),
        (("mcp-admin", "actors", "--state-dir", "sub"), {"subdirectory"}),
    ],
)  # fmt: skip
def test_bash_completes(written: Path, words: tuple[str, ...], found: set[str]) -> None:
    """Subcommands, options, choices and directories, each where it may stand."""
    (written.parent / "subdirectory").mkdir(exist_ok=True)
    assert completed(written, *words) == found


def test_bash_completes_by_the_tab_key(written: Path, tmp_path: Path) -> None:
    """On a terminal, sourced as the help says."""
    assert BASH
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "", "HOME": str(tmp_path)}
    with on_terminal([BASH, "--norc", "--noprofile", "-i"], directory=tmp_path, environment=environment) as terminal:
        terminal.type(f"PS1=; source {written}; echo rea''dy\n")
        place = terminal.until("ready\r\n")
        terminal.type("echo $(( 40 + 2 )); true || mcp-admin brea\tres\t--js\t; echo do''ne\n")
        place = terminal.until("mcp-admin breaker reset --json", after=place)
        terminal.until("done\r\n", after=place)
        terminal.type("exit\n")
        assert terminal.ended() == 0


def test_every_command_of_the_distribution_has_completions() -> None:
    """All console scripts, each with all its subcommands and options, in every shell."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name: f"ops.cli.{module}:main" for name, module in COMMANDS.items()} == {
        name: target for name, target in declared.items() if name.startswith("mcp-")
    }
    for shell in SHELLS:
        text = script(shell)
        for name, module in COMMANDS.items():
            assert name in text
            for word in importlib.import_module(f"ops.cli.{module}").parser().format_usage().split():
                option = word.strip("[]")
                assert not option.startswith("--") or option[2:] in text, (shell, name, option)


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shutil.which(shell)])
def test_a_shell_that_is_here_takes_its_script(shell: str, tmp_path: Path) -> None:
    """It is parsed without a complaint."""
    (tmp_path / "script").write_text(script(shell))
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a gateway, and nothing but the script; another shell is a usage error."""
    assert admin.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script("bash")
    with pytest.raises(SystemExit, match="2"):
        admin.main(["completion", "tcsh"])
