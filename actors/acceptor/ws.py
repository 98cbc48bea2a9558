"""WebSocket frames as a server sees them (RFC 6455 §5–§8), without I/O and without extensions.

The rules, each with the close code that its violation ends the connection with:

====================================================  ====
reserved bits are zero, opcodes are known (§5.2)      1002
client frames are masked (§5.1)                       1002
lengths use the shortest form, bit 63 is 0 (§5.2)     1002
control frames: FIN set, at most 125 bytes (§5.5)     1002
fragments continue a message, messages don't nest     1002
a close payload is empty, or a valid code and reason  1002
no binary messages: the gateway speaks JSON           1003
text and close reasons are UTF-8, told at once        1007
a message is at most ``max_message`` bytes, judged    1009
by the declared length, before the payload is read
====================================================  ====

The receive buffer of the caller is never written to: an unmasked payload is always a copy.
"""

from __future__ import annotations

from codecs import utf_8_decode

import attrs

from actors.acceptor.lines import KEPT_HEAD, KEPT_TAIL, Oversize
from actors.acceptor.masking import rotate, unmask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_FINAL_TEXT = _FINAL | TEXT
MAX_CONTROL = 125
"""Payload bytes of a control frame (RFC 6455 §5.5)."""


@attrs.frozen
class Ping:
    payload: bytes


@attrs.frozen
class Pong:
    payload: bytes


@attrs.frozen
class Close:
    """The peer's close frame. ``code`` is None when it gave none; then ``reason`` is empty."""

    code: int | None
    reason: str


Item = bytes | Ping | Pong | Close | Oversize


class WsProtocolError(ValueError):
    """The peer broke the protocol: close with ``code`` and ``reason``, and read nothing more.

    ``items`` is what was complete before the offence, in order; it still counts.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.items: list[Item] = []


def is_close_code(code: int) -> bool:
    """Whether ``code`` may stand in a close frame (RFC 6455 §7.4 and IANA's registry, which has 1012–1014)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class WsReceiver:
    """Turns the bytes of one client into messages and control frames.

    How the bytes are split over calls changes nothing but the time. The work is linear in the bytes, however they are
    split, and what is held is at most ``max_message`` and one frame header.

    Args:
        max_message: the most payload bytes of one message, all its fragments together. May be changed between calls;
            it binds from the next frame header on.
    """

    __slots__ = (
        "_control",
        "_discarded",
        "_ended",
        "_final",
        "_head",
        "_key",
        "_message",
        "_missing",
        "_opcode",
        "_tail",
        "_utf8_tail",
        "frames",
        "max_message",
        "most_frames",
    )

    def __init__(self, *, max_message: int) -> None:
        self.max_message = max_message
        self.frames = 0
        """Frames whose header is complete, of every kind: what a frame rate is measured by."""
        self.most_frames = 1 << 62
        """``frames`` may not pass this: WsProtocolError then. (A whole small message may; it ends the read.)"""
        self._head = b""  # an unfinished frame header; at most 13 bytes
        self._missing = 0  # payload bytes still to come of the frame below; 0: between frames
        self._opcode = 0
        self._final = False
        self._key = b""  # rotated so that it applies to the next payload byte
        self._message: bytearray | None = None  # unmasked text so far; None: between messages
        self._control = bytearray()  # unmasked payload so far of a control frame
        self._utf8_tail = b""  # the beginning of a character that ``_message`` ends with; at most 3 bytes
        self._discarded: int | None = None  # bytes so far of the message that is being discarded; None: none is
        self._tail = b""  # of that message, the last bytes; ``_message`` is its head
        self._ended = False

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished header, frame or message."""
        return len(self._head) + len(self._control) + (0 if self._message is None else len(self._message))

    @property
    def declared(self) -> int:
        """What the unfinished message will hold as far as its peer has said: bytes here and still to come."""
        if self._message is None or self._discarded is not None:
            return 0
        return len(self._message) + (self._missing if self._opcode < CLOSE else 0)

    @property
    def head(self) -> bytes:
        """The beginning of the unfinished message."""
        return b"" if self._message is None else bytes(self._message[:KEPT_HEAD])

    def discard(self) -> bytes:
        """Keep no more of the unfinished message than its ends: an ``Oversize`` takes its place. Returns what is held.

        All rules go on to bind it, the bound on its length too.
        """
        head = self.head
        if self._message is not None and self._discarded is None:
            self._discarded = len(self._message)
            self._tail = bytes(self._message[KEPT_HEAD:][-KEPT_TAIL:])
            self._message = bytearray(head)
        return head

    def receive(self, data: bytes) -> list[Item]:
        """Everything that ``data`` completes, in order: bytes are one whole text message, valid UTF-8, unmasked.

        After a close frame or an error all further data is ignored.

        Raises:
            WsProtocolError: with the items that came before the offence.
        """
        items: list[Item] = []
        if self._ended:
            return items
        if self._head:
            data = self._head + data
            self._head = b""
        try:
            position = self._payload(data, 0, items) if self._missing else 0
            end = len(data)
            while position < end:
                # A whole small unfragmented text frame, which is nearly all of the traffic; _frame does the rest.
                if data[position] == _FINAL_TEXT and self._message is None and position + 6 <= end:
                    size = data[position + 1] - _MASKED
                    if 0 <= size < 126:
                        start = position + 6
                    elif (
                        size == 126
                        and position + 8 <= end
                        and (size := data[position + 2] << 8 | data[position + 3]) >= 126
                    ):
                        start = position + 8
                    else:
                        position = self._frame(data, position, items)
                        continue
                    after = start + size
                    if after <= end and size <= self.max_message:
                        self.frames += 1
                        text = unmask(data[start:after], data[start - 4 : start])
                        if not text.isascii():
                            utf_8_decode(text, "strict", True)
                        items.append(text)
                        position = after
                        continue
                position = self._frame(data, position, items)
        except UnicodeDecodeError:
            error = WsProtocolError(1007, "not UTF-8")
            self._end()
            error.items = items
            raise error from None
        except WsProtocolError as error:
            self._end()
            error.items = items
            raise
        return items

    def _frame(self, data: bytes, position: int, items: list[Item]) -> int:
        """One frame of any kind from its first byte on. Returns the position after what could be taken."""
        available = len(data) - position
        if available < 2:
            self._head = data[position:]
            return len(data)
        first, second = data[position], data[position + 1]
        opcode, final, size = first & _OPCODE, first >= _FINAL, second & _LENGTH
        if first & _RESERVED:
            raise WsProtocolError(1002, "reserved bits set")
        if not second & _MASKED:
            raise WsProtocolError(1002, "frame not masked")
        self._check_opcode(opcode, final, size)

        header = 2
        if size >= 126:
            header = 4 if size == 126 else 10
            if available < header:
                self._head = data[position:]
                return len(data)
            size = int.from_bytes(data[position + 2 : position + header], "big")
            if size < (126 if header == 4 else 1 << 16):
                raise WsProtocolError(1002, "length not in its shortest form")
            if size >= 1 << 63:
                raise WsProtocolError(1002, "length with its highest bit set")
        if opcode < CLOSE and size + self._length > self.max_message:
            raise WsProtocolError(1009, "message too big")
        if available < header + 4:
            self._head = data[position:]
            return len(data)

        start = position + header
        self.frames += 1
        if self.frames > self.most_frames:
            raise WsProtocolError(1008, "too many frames a second")
        self._opcode, self._final, self._missing = opcode, final, size
        self._key = data[start : start + 4]
        if opcode == TEXT:
            self._message = bytearray()
        return self._payload(data, start + 4, items)

    @property
    def _length(self) -> int:
        """Bytes so far of the unfinished message."""
        if self._discarded is not None:
            return self._discarded
        return 0 if self._message is None else len(self._message)

    def _check_opcode(self, opcode: int, final: bool, size: int) -> None:
        if opcode >= CLOSE:
            if opcode > PONG:
                raise WsProtocolError(1002, "unknown opcode")
            if not final:
                raise WsProtocolError(1002, "control frame fragmented")
            if size > MAX_CONTROL:
                raise WsProtocolError(1002, "control frame too long")
        elif opcode > BINARY:
            raise WsProtocolError(1002, "unknown opcode")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise WsProtocolError(1002, "nothing to continue")
        elif self._message is not None:
            raise WsProtocolError(1002, "new message inside a fragmented one")
        elif opcode == BINARY:
            raise WsProtocolError(1003, "binary messages are not accepted")

    def _payload(self, data: bytes, position: int, items: list[Item]) -> int:
        """Payload of the frame at hand, and the frame's end when it is all there."""
        after = min(position + self._missing, len(data))
        chunk = unmask(data[position:after], self._key)
        self._missing -= len(chunk)
        complete = not self._missing
        if not complete:
            self._key = rotate(self._key, len(chunk))
        if self._opcode < CLOSE:
            self._text(chunk, complete and self._final, items)
        else:
            self._control += chunk
            if complete:
                payload = bytes(self._control)
                self._control.clear()
                return self._control_frame(payload, after, len(data), items)
        return after

    def _text(self, chunk: bytes, last: bool, items: list[Item]) -> None:
        # Checked chunk by chunk, so that a bad character ends the message where it stands and no string of the whole
        # message's size is ever built (it could take four times the message).
        if self._utf8_tail or not chunk.isascii():
            text = self._utf8_tail + chunk
            taken = utf_8_decode(text, "strict", last)[1]
            self._utf8_tail = tail = text[taken:]
            # The decoder waits for a surrogate's third byte, which can't make it better (RFC 3629 §3).
            if tail[:1] == b"\xed" and tail[1:2] >= b"\xa0":
                raise WsProtocolError(1007, "not UTF-8")
        message = self._message
        assert message is not None  # noqa: S101 (for the type checker: _check_opcode saw to it)
        if self._discarded is not None:
            self._discarded += len(chunk)
            room = KEPT_HEAD - len(message)
            message += chunk[:room]
            self._tail = (self._tail + chunk[max(0, room) :])[-KEPT_TAIL:]
            if last:
                items.append(Oversize(bytes(message), self._tail, self._discarded))
                self._message = None
                self._discarded = None
            return
        message += chunk
        if last:
            items.append(bytes(message))
            self._message = None

    def _control_frame(self, payload: bytes, after: int, end: int, items: list[Item]) -> int:
        if self._opcode == PING:
            items.append(Ping(payload))
            return after
        if self._opcode == PONG:
            items.append(Pong(payload))
            return after
        if not payload:
            close = Close(None, "")
        elif len(payload) == 1:
            raise WsProtocolError(1002, "close payload of one byte")
        else:
            code = int.from_bytes(payload[:2], "big")
            if not is_close_code(code):
                raise WsProtocolError(1002, "invalid close code")
            close = Close(code, payload[2:].decode())
        self._end()
        items.append(close)
        return end

    def _end(self) -> None:
        self._ended = True
        self._message = None


def _short_head(opcode: int, size: int) -> bytes:
    return bytes((_FINAL | opcode, size))


_TEXT_HEADS = tuple(_short_head(TEXT, size) for size in range(126))


def text_head(size: int) -> bytes:
    """The header of an unmasked text frame of ``size`` payload bytes: for large payloads that should not be copied."""
    if size < 126:
        return _TEXT_HEADS[size]
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


def encode_text(payload: bytes) -> bytes:
    """One whole text message; ``payload`` is valid UTF-8."""
    size = len(payload)
    if size < 126:
        return _TEXT_HEADS[size] + payload
    return text_head(size) + payload


def encode_ping(payload: bytes = b"") -> bytes:
    """Raises ValueError above 125 bytes."""
    return _control(PING, payload)


def encode_pong(payload: bytes) -> bytes:
    """Raises ValueError above 125 bytes."""
    return _control(PONG, payload)


def encode_close(code: int | None, reason: str = "") -> bytes:
    """A close frame; the reason is cut to the 123 bytes that fit, at a character.

    Raises:
        ValueError: for a code that must not be sent (1005, 1006, 1015, …), or a reason without a code.
    """
    if code is None:
        if reason:
            raise ValueError("a close reason needs a code")
        return _control(CLOSE, b"")
    if not is_close_code(code):
        raise ValueError(f"close code {code} must not be sent")
    text = reason.encode("utf-8", "replace")
    if len(text) > MAX_CONTROL - 2:
        text = text[: MAX_CONTROL - 2].decode("utf-8", "ignore").encode()
    return _control(CLOSE, code.to_bytes(2, "big") + text)


def _control(opcode: int, payload: bytes) -> bytes:
    if len(payload) > MAX_CONTROL:
        raise ValueError("a control frame holds at most 125 bytes")
    return _short_head(opcode, len(payload)) + payload
