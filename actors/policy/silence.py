"""Whether an upstream is silent: a call timed out, nothing has come since it was sent, and a probe goes unanswered."""

from __future__ import annotations

import attrs


@attrs.define
class Silence:
    """At most one probe is under way. Any message ends the suspicion: who sends something isn't silent."""

    timeout_ns: int
    heard: int = 0  # messages that have come
    _deadline_ns: int = 0  # of the probe; 0: none
    _calls: int = 0  # that timed out, and whose verdict waits for the probe

    def hear(self) -> None:
        self.heard += 1
        self._deadline_ns = 0
        self._calls = 0

    def suspect(self, heard: int) -> bool:
        """Whether nothing has come since ``heard`` was read."""
        return self.heard == heard

    def begin(self, now: int) -> bool:
        """A call timed out in silence. True: send a probe now; otherwise one is under way."""
        self._calls += 1
        if self._deadline_ns:
            return False
        self._deadline_ns = now + self.timeout_ns
        return True

    def check(self, now: int, timeout_ns: int) -> bool:
        """Nothing is wrong, but nothing was heard for a while. True: send a probe now, which itself counts as a call;
        otherwise one is under way."""
        if self._deadline_ns:
            return False
        self._calls = 1
        self._deadline_ns = now + min(timeout_ns, self.timeout_ns)
        return True

    def give_up(self) -> int:
        """The probe could not be answered: as if its time were over. How many calls were met with silence."""
        calls = self._calls
        self.forget()
        return calls

    def expire(self, now: int) -> int:
        """How many calls turn out to have been met with silence, now that the probe's time is over."""
        if not self._deadline_ns or now < self._deadline_ns:
            return 0
        calls = self._calls
        self.forget()
        return calls

    def forget(self) -> None:
        self._deadline_ns = 0
        self._calls = 0
