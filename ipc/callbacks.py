"""Callbacks run apart from what caused them: never inside another actor's call, and one's error hurts no other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from .mailbox import Mailbox, acting

OnCallbackError = Callable[[str, Exception], None]


@attrs.define(eq=False)
class CallbackQueue:
    """What has to be called soon, in order.

    ``wake`` is called when the queue stops being empty; ``run`` then has to be called from the loop. ``on_error``
    gets (where, error) for a callback that belongs to no actor.
    """

    _wake: Callable[[], None]
    _on_error: OnCallbackError
    errors: int = attrs.field(default=0, init=False)
    orphans: int = attrs.field(default=0, init=False)  # not called: their actor's incarnation was over
    _queue: deque[tuple[Mailbox | None, str, Callable[..., None], tuple[object, ...]]] = attrs.field(
        factory=deque, init=False
    )

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, owner: Mailbox | None, where: str, callback: Callable[..., None], *args: object) -> None:
        """Call back soon on behalf of ``owner``. ``where`` says in a log which callback it was."""
        if not self._queue:
            self._wake()
        self._queue.append((owner, where, callback, args))

    def run(self) -> None:
        """Call everything that is in the queue now; what the callbacks add waits for the next turn."""
        previous = acting.get()
        for _ in range(len(self._queue)):
            owner, where, callback, args = self._queue.popleft()
            acting.set(owner)
            self.call(owner, where, callback, *args)
        acting.set(previous)
        if self._queue:
            self._wake()

    def call(self, owner: Mailbox | None, where: str, callback: Callable[..., None], *args: object) -> None:
        """Call back now. What it raises goes to its owner, never to the caller.

        Nothing is called for an owner whose incarnation is over.
        """
        if owner is not None and owner.closed:
            self.orphans += 1
            return
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - the boundary between an actor's code and the loop that it shares
            self.errors += 1
            if owner is not None and owner.owner_failed is not None:
                owner.owner_failed(error)
            else:
                self._on_error(where, error)
