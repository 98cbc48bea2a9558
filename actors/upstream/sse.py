"""Server-sent events (HTML, "event stream interpretation"), bounded. No input or output here."""

from __future__ import annotations

from typing import Final

import attrs

MAX_ID: Final = 1024  # of an event; goes into a header of ours
MAX_RETRY_MS: Final = 60_000
_BOM: Final = b"\xef\xbb\xbf"
_OTHER_FIELD: Final = 4096  # of a line that is no data: longer ones are cut, none that is known is so long


class EventTooLong(ValueError):
    """An event's data passes the limit."""


@attrs.frozen
class Event:
    """One event. ``type`` is "message" where the stream names none; ``data`` has its lines joined by LF."""

    type: bytes
    data: bytes


class EventReader:
    """Splits a stream into events, in linear time however the bytes arrive.

    What is kept never exceeds ``max_data`` bytes and a few thousand more. Comments, unknown fields and events without
    data cost nothing but their reading.
    """

    def __init__(self, max_data: int) -> None:
        self.last_id = b""  # to resume with; b"": there is none
        self.retry_ms: int | None = None
        self._max_data = max_data
        self._line = bytearray()  # the beginning of a line whose end is still to come
        self._skipping = False  # the rest of this line is of no interest
        self._after_cr = False
        self._data: list[bytes] = []
        self._size = 0
        self._type = b""
        self._id: bytes | None = None
        self._started = False

    @property
    def held(self) -> int:
        """Bytes kept."""
        return len(self._line) + self._size

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are complete now. Raises EventTooLong; nothing can be read after that."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        if chunk:
            self._after_cr = chunk[-1:] == b"\r"
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[Event] = []
        at = 0
        while (end := chunk.find(b"\n", at)) >= 0:
            if self._line or self._skipping:
                self._begin(chunk[at:end])
                line = bytes(self._line)
                self._line.clear()
                self._skipping = False
            else:
                line = chunk[at:end]
            at = end + 1
            self._take(line, events)
        if at < len(chunk):
            self._begin(chunk[at:])
        return events

    def _begin(self, part: bytes) -> None:
        if self._skipping:
            return
        self._line += part
        if self._line.startswith(b"data") or len(self._line) < 8:
            if self._size + len(self._line) > self._max_data + 8:
                raise EventTooLong
        elif len(self._line) > _OTHER_FIELD:
            del self._line[_OTHER_FIELD:]
            self._skipping = True

    def _take(self, line: bytes, events: list[Event]) -> None:
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            if self._size > self._max_data + 1:
                raise EventTooLong
            self._data.append(value)
        elif field == b"event":
            self._type = value
        elif field == b"id":
            # What could not be sent back as a header field is no id.
            if len(value) <= MAX_ID and all(0x21 <= byte <= 0x7E for byte in value):
                self._id = value
        elif field == b"retry" and value.isdigit() and len(value) <= 9:
            self.retry_ms = min(int(value), MAX_RETRY_MS)

    def _dispatch(self, events: list[Event]) -> None:
        if self._id is not None:
            self.last_id, self._id = self._id, None
        data, kind = self._data, self._type
        self._data, self._size, self._type = [], 0, b""
        if data:
            events.append(Event(kind or b"message", b"\n".join(data)))
