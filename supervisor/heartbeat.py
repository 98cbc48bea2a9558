"""Progress of each worker's loop: a word in shared memory that the loop itself writes, and the judge of it.

The word is the monotonic time of the loop's last turn. A memfd holds it, so that neither side can make the other
wait: the worker writes 8 aligned bytes, the supervisor reads them. A pipe or a socket would fill up while the reader
is late, and a thread would go on beating after the loop has hung.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

BEATS = 12
"""Beats in a timeout: a loop that misses this many in a row makes no progress."""

_WORD = struct.Struct("=q")


class Slot:
    """One worker's word, mapped. Both sides open it by the same descriptor, which each may close afterwards."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    @classmethod
    def create(cls) -> tuple[Slot, int]:
        """A new word (0: no beat yet), and the descriptor to hand on. Raises OSError."""
        descriptor = os.memfd_create("heartbeat", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            return cls(descriptor), descriptor
        except OSError:
            os.close(descriptor)
            raise

    def beat(self, now: int) -> None:
        _WORD.pack_into(self._memory, 0, now)

    def read(self) -> int:
        return int(_WORD.unpack_from(self._memory, 0)[0])

    def close(self) -> None:
        self._memory.close()


Health = Literal["well", "suspect", "overdue"]


@attrs.frozen
class Pulse:
    """What the judge knows of one worker: its last beat, and for how long since then the judge itself was absent."""

    beat_ns: int
    absent_ns: int = 0

    def silence(self, now: int) -> int:
        """For how long it had the chance to beat and did not."""
        return now - self.beat_ns - self.absent_ns


@attrs.frozen
class Verdict:
    """``overdue`` is at most one worker: the most silent one, and none while a fence is under way."""

    suspect: frozenset[str]
    overdue: str | None
    silence_ns: int = 0


@attrs.frozen
class Judge:
    """Looks at all beats every ``interval_ns``. What it is late by itself, it adds to everybody's deadline:

    whatever stopped the supervisor (a paused container, a swapping machine) may well have stopped the workers too.
    A beat from the future or from before the watch began is treated as one at that moment.
    """

    timeout_ns: int
    interval_ns: int
    looked_ns: int
    pulses: Mapping[str, Pulse] = attrs.field(factory=dict)

    def watch(self, name: str, now: int) -> Judge:
        """From now on; a name that was watched before starts afresh."""
        return attrs.evolve(self, pulses={**self.pulses, name: Pulse(now)})

    def unwatch(self, name: str) -> Judge:
        return attrs.evolve(self, pulses={other: pulse for other, pulse in self.pulses.items() if other != name})

    def look(self, beats: Mapping[str, int], now: int, *, fencing: Iterable[str] = ()) -> tuple[Judge, Verdict]:
        """``beats`` are the words as read just now; ``fencing`` the workers that are being ended already."""
        lateness = max(0, now - self.looked_ns - self.interval_ns)
        pulses = {}
        for name, pulse in self.pulses.items():
            beat = min(beats.get(name, 0), now)
            moved = beat > pulse.beat_ns
            # A beat during the absence ends what was owed before it, and is itself followed by absence.
            absent = min(lateness, now - beat) if moved else pulse.absent_ns + lateness
            pulses[name] = Pulse(max(beat, pulse.beat_ns), absent)
        condemned = frozenset(fencing)
        silent = {name: p.silence(now) for name, p in pulses.items() if name not in condemned}
        suspect = frozenset(name for name, silence in silent.items() if silence > self.timeout_ns // 2)
        overdue = max((name for name in suspect), key=lambda name: silent[name], default=None)
        if overdue is not None and (condemned or silent[overdue] <= self.timeout_ns):
            overdue = None
        verdict = Verdict(suspect | condemned, overdue, silent[overdue] if overdue is not None else 0)
        return attrs.evolve(self, looked_ns=now, pulses=pulses), verdict
