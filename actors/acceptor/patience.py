"""Questions that wait for a policy actor which is down, instead of failing with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ipc.address import Address, Reply
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import Message

Post = Callable[[Callable[[], None]], None]


class Patience:
    """Asks one policy actor; a question that its death left unanswered is put to its next incarnation.

    Only for questions that may be asked twice. Each is answered exactly once, by way of ``post``: with the actor's
    answer, or DeadlineExceeded when the deadline came first, however often the actor died meanwhile. The number of
    questions is bounded by the number of connections, each of which asks one at a time.
    """

    def __init__(self, address: Address, post: Post) -> None:
        self._address = address
        self._post = post
        self._waiting: list[tuple[Message, int, Callable[[Reply], None]]] = []
        self._stop: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, on_up: Callable[[], None] | None = None) -> None:
        """Watch the actor. ``on_up`` is posted at each new incarnation, before the questions are asked again."""

        def changed(incarnation: int) -> None:
            if incarnation:
                if on_up is not None:
                    self._post(on_up)
                self._post(self._again)

        self._stop = self._address.watch(changed)

    def stop(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None

    def ask(self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None]) -> None:
        """``on_reply`` runs as a posted call, never before this returns."""

        def answered(reply: Reply) -> None:
            if isinstance(reply, ActorDown) and time.monotonic_ns() < deadline_ns:
                self._waiting.append((message, deadline_ns, on_reply))
                if self._address.incarnation:  # it is up again already: its watchers have been told before
                    self._post(self._again)
            else:
                self._post(lambda: on_reply(reply))

        self._address.request(message, deadline_ns, answered)

    def expire(self, now: int) -> None:
        """Answer the questions whose deadline passed while the actor was down."""
        if not self._waiting:
            return
        overdue = [question for question in self._waiting if question[1] <= now]
        if overdue:
            self._waiting = [question for question in self._waiting if question[1] > now]
            for _, _, on_reply in overdue:
                on_reply(DeadlineExceeded(self._address.name))

    def _again(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message, deadline_ns, on_reply in waiting:
            self.ask(message, deadline_ns, on_reply)
