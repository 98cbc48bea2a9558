"""How many CPUs this process may really use: its affinity mask, and the quota of every cgroup above it.

A quota stands in ``cpu.max`` (version 2: "QUOTA PERIOD" or "max PERIOD") or in ``cpu.cfs_quota_us`` and
``cpu.cfs_period_us`` (version 1; -1 is none), in microseconds. Each level down to the process's own group binds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def allowed_cpus(
    affinity: int | None = None,
    memberships: Path = Path("/proc/self/cgroup"),
    mount: Path = Path("/sys/fs/cgroup"),
) -> int:
    """At least 1. A quota of one and a half CPUs counts as two."""
    count = affinity if affinity is not None else len(os.sched_getaffinity(0))
    for quota in _quotas(memberships, mount):
        count = min(count, math.ceil(quota))
    return max(count, 1)


def _quotas(memberships: Path, mount: Path) -> Iterator[float]:
    try:
        lines = memberships.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _levels(mount, path, _version_2)
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu"):
                if (mount / name).is_dir():
                    yield from _levels(mount / name, path, _version_1)
                    break


def _levels(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    # In a cgroup namespace, or a container that sees only its own subtree, the group's own path may not exist below
    # the mount: then the mount's root is the group.
    directory = root / path.lstrip("/")
    for level in (directory, *directory.parents):
        if not level.is_relative_to(root):
            return
        quota = read(level)
        if quota is not None:
            yield quota


def _version_2(level: Path) -> float | None:
    words = _words(level / "cpu.max")
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _version_1(level: Path) -> float | None:
    quota, period = _words(level / "cpu.cfs_quota_us"), _words(level / "cpu.cfs_period_us")
    return _ratio(quota[0], period[0]) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii", "replace").split()
    except OSError:
        return []
