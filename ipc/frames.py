"""What two workers say to each other on a channel: actors' messages in an envelope, and news about actors.

Every frame names an actor and one of its incarnations. In Up, Down, Reply and Credit it is an actor of the sender;
in Data, Control and Request it is one of the receiver. Messages for an incarnation that is over are dropped: whoever
waits for an answer learns it from Down, which travels the other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from .messages import AnyMessage, Message

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**62)]

# Whoever sends has some Message; the decoder needs the list of all.
if TYPE_CHECKING:
    Payload = Message
else:
    Payload = AnyMessage


class _Frame(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    actor: str
    incarnation: Positive


class Up(_Frame, frozen=True, tag=1):
    """The actor takes messages. Until credit comes back, at most ``data`` messages on the data lane and
    ``control`` on the control lane (requests included), and of each lane no more after ``size`` bytes."""

    data: Positive
    size: Positive
    control: Positive


class Down(_Frame, frozen=True, tag=2):
    """That incarnation has ended. What it has not answered by now, it never will."""

    reason: str


class Data(_Frame, frozen=True, tag=3):
    message: Payload


class Control(_Frame, frozen=True, tag=4):
    message: Payload


class Request(_Frame, frozen=True, tag=5):
    """``id`` is unique in the sending process. The deadline is absolute CLOCK_MONOTONIC nanoseconds."""

    id: Positive
    deadline_ns: int
    message: Payload


class Reply(_Frame, frozen=True, tag=6):
    id: Positive
    message: Payload


class Credit(_Frame, frozen=True, tag=7):
    """The actor has taken so many messages, and bytes of frames, out of its mailbox since the last Credit."""

    data: Count
    data_size: Count
    control: Count
    control_size: Count


Frame = Up | Down | Data | Control | Request | Reply | Credit
