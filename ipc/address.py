"""References to actors: the same interface for an actor in this process and for one in another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .errors import ActorDown, DeadlineExceeded
from .messages import Message

Reply = Message | ActorDown | DeadlineExceeded


class Address(Protocol):
    """An actor's address. It outlives the actor's incarnations.

    No method but ``ask`` awaits. Callbacks run in the loop's thread, soon after the event, and must not raise.
    """

    @property
    def name(self) -> str: ...

    @property
    def incarnation(self) -> int:
        """Of the actor that runs now; 0 while none does."""

    def tell(self, message: Message) -> bool:
        """Data lane. True: it is on its way. False: no room or credit; nothing was queued, ``on_room`` tells when.

        Raises ActorDown while no incarnation is up.
        """

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when ``tell`` may succeed again or the actor has gone."""

    def control(self, message: Message) -> None:
        """Control lane: never waits for data or credit. Raises ActorDown, or MailboxFull past its hard bound."""

    def request(self, message: Message, deadline_ns: int, on_reply: Callable[[Reply], None]) -> None:
        """Send on the control lane and call back exactly once: with the answer, ActorDown or DeadlineExceeded.

        Raises nothing: an actor that is down answers ActorDown through the callback (before this returns).
        """

    async def ask(self, message: Message, deadline_ns: int) -> Message:
        """``request`` for tasks. Raises ActorDown or DeadlineExceeded."""

    def watch(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call back with the incarnation now (at once) and at each change (0: down). Returns the way to stop it."""
