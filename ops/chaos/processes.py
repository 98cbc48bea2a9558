"""Processes as ``/proc`` shows them: who belongs to whom, and what each holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import attrs


@attrs.frozen
class Process:
    """``started`` tells it from another one that gets the same number later."""

    pid: int
    parent: int
    state: str
    started: int
    command: str


def look(pid: int) -> Process | None:
    """None for one that is gone, zombies included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[1]), fields[0], int(fields[19]), command)


def family(pid: int) -> list[Process]:
    """All living descendants."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            found = look(int(entry.name))
            if found is not None:
                children.setdefault(found.parent, []).append(found)
    family, ahead = [], [pid]
    while ahead:
        below = children.get(ahead.pop(), [])
        family += below
        ahead += [process.pid for process in below]
    return family


def lives(process: Process) -> bool:
    """Whether it is still this very one."""
    now = look(process.pid)
    return now is not None and now.started == process.started


def descriptors(pid: int) -> Counter[str]:
    """How many of each kind."""
    kinds: Counter[str] = Counter()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                kinds[str(entry.readlink()).partition(":")[0]] += 1
            except OSError:
                continue  # closed while this looks
    except OSError:
        return Counter()
    return kinds


def highest_descriptor(pid: int) -> int:
    """Raises OSError for a process that is gone."""
    return max((int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()), default=0)


def resident_kib(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0
