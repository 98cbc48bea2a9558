"""The image, made and run without a container engine: the Containerfile's own instructions in a sandbox of bubblewrap.

The base image is this machine's /usr and Python; the rest is as in the image: /app built by the RUN lines of the
Containerfile, its environment, the user 10001 without any capability, no_new_privs, a read-only root, and a PID
namespace whose first process is the entry point.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
from requirement import need

ROOT = Path(__file__).parent.parent
CONTAINERFILE = ROOT / "ops" / "container" / "Containerfile"
UID = 10001

LIMITS = ("setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--")
"""What becomes of a process has no capability, and can get none. Setting this limit takes CAP_SETPCAP, once."""

_FROM_THE_MACHINE = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt")
"""What a base image has, and where pip is configured."""


@attrs.frozen
class Stage:
    """One stage of a Containerfile: its instructions in order, continuation lines joined."""

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, keyword: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == keyword]

    def environment(self) -> dict[str, str]:
        return dict(word.split("=", 1) for rest in self.all("ENV") for word in shlex.split(rest))

    def list_of(self, keyword: str) -> list[str]:
        """The last instruction of this kind in its JSON form."""
        return json.loads(self.all(keyword)[-1])


def stages() -> list[Stage]:
    text = re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[tuple[str, str, list[tuple[str, str]]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append((name, base, []))
        elif found:
            found[-1][2].append((keyword, rest.strip()))
    return [Stage(name, base, tuple(instructions)) for name, base, instructions in found]


def need_sandbox() -> None:
    for tool, package in (("bwrap", "bubblewrap"), ("setpriv", "util-linux"), ("nsenter", "util-linux")):
        need(shutil.which(tool), f"{tool} is not installed (Debian: apt-get install {package})")
    probe = ["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--unshare-pid", "--proc", "/proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"bubblewrap can make no user and PID namespaces here: {done.stderr.strip()}")


@attrs.frozen
class Image:
    """``app`` is what /app holds, without the volumes in it."""

    app: Path
    environment: dict[str, str]
    entry_point: list[str]
    health_check: list[str]

    @classmethod
    def built(cls, directory: Path) -> Image:
        """Build it in ``directory``, or take what another process has built there. Needs the package index."""
        directory.mkdir(exist_ok=True)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = directory / "done"
            if not done.exists():
                _build(directory)
                done.touch()
        gateway = stages()[1]
        return cls(directory / "app", gateway.environment(), gateway.list_of("ENTRYPOINT"), _health_check(gateway))

    def command(self, words: Sequence[str], volumes: Path, *, more: Sequence[str] = ()) -> list[str]:
        """Run ``words`` as PID 1 of a container with its own network. ``more``: further options of bubblewrap."""
        state, logs = volumes / "state", volumes / "logs"
        for path in (state, logs / "security"):
            path.mkdir(parents=True, exist_ok=True)
        binds = (
            ("--ro-bind", self.app, "/app"),
            ("--bind", logs, "/app/mcp-logs"),
            ("--bind", state, "/var/lib/portcullis"),
        )
        rig = _sandbox(binds, more=more)
        return [*rig, "--unshare-pid", "--unshare-net", "--as-pid-1", "--remount-ro", "/", "--", *LIMITS, *words]


def _build(directory: Path) -> None:
    build, gateway, last = stages()
    assert (build.name, gateway.name, last.base) == ("build", "gateway", "gateway")
    app, volumes = directory / "app", directory / "lib"
    for path in (app, volumes):
        shutil.rmtree(path, ignore_errors=True)  # of a build that was interrupted
        path.mkdir()
    rig = _sandbox((("--bind", app, "/app"), ("--bind", volumes, "/var/lib")))
    for keyword, rest in build.instructions:
        if keyword == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(ROOT / source, app / Path(source).name if target == "./" else app / target)
        elif keyword == "RUN":
            path = f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin"
            _run(rig, rest, {**os.environ, **build.environment(), "PATH": path})
    for rest in gateway.all("RUN"):
        _run(rig, rest, {"PATH": "/usr/bin:/bin"})


def _health_check(stage: Stage) -> list[str]:
    (rest,) = stage.all("HEALTHCHECK")
    return json.loads(rest.partition("CMD ")[2])


def _copy(source: Path, target: Path) -> None:
    """As the build's context holds it: see .containerignore."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".env", ".env.*", "secrets", "*.pem", "*.key")
        shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def _sandbox(binds: Sequence[tuple[str, Path, str]], *, more: Sequence[str] = ()) -> list[str]:
    """A root of its own, and the user 10001."""
    words = ["bwrap", "--die-with-parent", "--unshare-user", "--uid", str(UID), "--gid", str(UID), "--unshare-ipc"]
    words += ["--cap-add", "CAP_SETPCAP", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for name in _FROM_THE_MACHINE:
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    base = Path(sys.base_prefix).resolve()
    if not base.is_relative_to("/usr"):
        words += ["--ro-bind", str(base), str(base)]
    for option, source, target in binds:
        words += [option, str(source), target]
    return [*words, *more, "--chdir", "/app"]


def _run(rig: list[str], script: str, environment: dict[str, str]) -> None:
    words = [*rig, "--", *LIMITS, "sh", "-ec", script]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    said = f"RUN {script}\n{done.stdout}{done.stderr}"
    if "--require-hashes" in script:
        need(done.returncode == 0, said)
    assert done.returncode == 0, said
