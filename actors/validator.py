"""The validator: checks messages that are too large to be parsed between two turns of a loop that serves others.

A message comes as a sealed memfd, so that its bytes cross no socket and can't change under the parser. It runs in a
worker of its own: whatever a message does to it, no connection is hurt, and its acceptor tries it once more on the
next incarnation before it is refused.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Sequence

import attrs
import msgspec
import trio

from actors.policy.content.checks import Checks
from actors.policy.jsonrpc import INVALID_REQUEST, Refusal, parse_client, splice
from ipc.context import Context
from ipc.errors import MalformedFrame
from ipc.fdpass import DescriptorLink
from ipc.messages import (
    Checking,
    Describe,
    Description,
    Drain,
    Invalid,
    LinksChanged,
    SettingsChanged,
    Valid,
    Validate,
)

log = logging.getLogger("portcullis.validator")

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TOO_LARGE = 413
_LONGEST_ID = 16_384  # bytes that a shortened verdict still tells


class BadPayload(ValueError):
    """A descriptor that isn't what the message beside it says: an acceptor of ours went wrong."""


def read_sealed(fd: int, size: int, maximum: int) -> bytes:
    """The whole content of a sealed memfd.

    Raises BadPayload when its content could still change, is not ``size`` bytes or more than ``maximum``; OSError
    when it can't be read.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadPayload(f"not a memfd: {error.strerror}") from None
    if seals & _SEALS != _SEALS:
        raise BadPayload("not sealed")
    if os.fstat(fd).st_size != size:
        raise BadPayload("of another size than stated")
    if size > maximum:
        raise BadPayload(f"{size} bytes; at most {maximum} are allowed")
    parts: list[bytes] = []
    at = 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            raise BadPayload("shorter than its size")
        parts.append(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@attrs.define
class Validator:
    """Answers each Validate with Valid or Invalid, on the link that it came by."""

    maximum: int  # bytes of one message
    checks: Checks
    valid: int = 0
    invalid: int = 0
    bytes: int = 0

    def judge(self, request: Validate, fds: Sequence[int]) -> Valid | Invalid:
        """The verdict on one message. The descriptors stay the caller's. Raises BadPayload, OSError."""
        if len(fds) != 1:
            raise BadPayload(f"{len(fds)} descriptors")
        try:
            raw = read_sealed(fds[0], request.size, self.maximum)
            self.bytes += len(raw)
            envelope = parse_client(raw, max_depth=request.max_depth)
            findings, edits = self.checks.whole(raw, envelope, request.schema)
            if edits:
                envelope = parse_client(splice(raw, edits), max_depth=request.max_depth)
        except Refusal as refusal:
            self.invalid += 1
            data = b"" if refusal.data is None else msgspec.json.encode(refusal.data)
            return Invalid(
                request.ticket,
                refusal.code,
                refusal.message,
                refusal.id,
                refusal.notification,
                data,
                refusal.rule,
            )
        except MemoryError:
            self.invalid += 1
            log.warning("no memory to check a message of %d bytes", request.size)
            return Invalid(request.ticket, _TOO_LARGE, "too large to be checked", b"null", False, rule="memory")
        self.valid += 1
        rows: list[tuple[str, str, str]] = [(finding.rule, finding.pointer, finding.mode) for finding in findings]
        return Valid(request.ticket, envelope, rows, list(edits))

    async def serve(self, link: DescriptorLink) -> None:
        """Until the link ends. A peer that breaks its rules loses it."""
        try:
            while True:
                message, fds = await link.receive()
                try:
                    if not isinstance(message, Validate):
                        raise BadPayload(f"a {type(message).__name__}")
                    await link.send_wait(Checking(message.ticket))  # so that it is known what killed it
                    verdict = self.judge(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
                await self._answer(link, verdict)
        except (MalformedFrame, BadPayload) as error:
            log.error("a link is closed: %s", error)  # noqa: TRY400 - it says where and what; the rest is the peer's
            link.close()
        except (EOFError, OSError, trio.ClosedResourceError) as error:
            log.info("a link has ended: %s", error)

    async def _answer(self, link: DescriptorLink, verdict: Valid | Invalid) -> None:
        try:
            await link.send_wait(verdict)
        except ValueError:
            # The packet is too long: a name or an id of a hundred kilobytes, which nothing could act on either.
            await link.send_wait(_shortened(verdict))

    def describe(self) -> Description:
        return Description(msgspec.json.encode({"valid": self.valid, "invalid": self.invalid, "bytes": self.bytes}))


def _shortened(verdict: Valid | Invalid) -> Invalid:
    """With the message's own id, unless that is what is too long."""
    if isinstance(verdict, Valid):
        message = "Invalid Request: a method, id, name or token is too long"
        envelope = verdict.envelope
        notification = envelope.kind != "request"
        known = b"null" if notification else _short(envelope.id)
        return Invalid(verdict.ticket, INVALID_REQUEST, message, known, notification, rule="field-length")
    return Invalid(
        verdict.ticket, verdict.code, verdict.message[:256], _short(verdict.id), verdict.notification, rule=verdict.rule
    )


def _short(request_id: bytes) -> bytes:
    return request_id if len(request_id) <= _LONGEST_ID else b"null"


async def main(context: Context) -> None:
    """The actor ``validator``."""
    validator = Validator(context.settings.max_request_size, Checks(context.settings))
    served: set[int] = set()  # by identity: the supervisor replaces a link under the same key
    context.ready()
    async with trio.open_nursery() as nursery:

        async def serve(link: DescriptorLink) -> None:
            await validator.serve(link)
            served.discard(id(link))

        def serve_new() -> None:
            for link in context.links.values():
                if id(link) not in served and link.fileno() != -1:
                    served.add(id(link))
                    nursery.start_soon(serve, link)

        serve_new()
        while True:
            for delivery in await context.mailbox.receive():
                if isinstance(delivery.message, LinksChanged):
                    serve_new()
                elif isinstance(delivery.message, Describe) and delivery.wants_reply:
                    delivery.reply(validator.describe())
                elif isinstance(delivery.message, SettingsChanged):
                    context.renew()
                elif isinstance(delivery.message, Drain):
                    nursery.cancel_scope.cancel()
                    return
                else:
                    log.warning("an unexpected message: %s", type(delivery.message).__name__)
