"""The limiter's part that blocks: offences in, blocks out, to the acceptors at once and to the disk soon after.

An offence is in the limiter's journal before anyone acts on it, and is held against its subject until the block that
follows from it is on disk. So a limiter that is killed at any instruction comes back with the block, or with the
offences that make it block again.

What acceptors are told goes out in order, on the control lane, to each at its own pace; a new incarnation of an
acceptor, or one that fell behind, is told everything anew.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import attrs
import trio

from ipc.address import Address
from ipc.context import Context
from ipc.errors import ActorDown, MailboxFull
from ipc.mailbox import Delivery
from ipc.messages import (
    AuditEvent,
    BlockClient,
    Blocked,
    BlockListing,
    Done,
    ListBlocks,
    Message,
    Offences,
    UnblockClient,
    Unblocked,
)

from .audit_ring import AuditRing
from .block_store import BlockStore
from .policy.address_set import AddressSet
from .policy.blocks import PRINCIPAL, Block, Blocks
from .policy.client_key import client_key
from .policy.scoring import OFFENCES, Forgiven, ScoreRecord, Scoring, ScoringRule

log = logging.getLogger("portcullis.limiter")

_MS = 1_000_000
_ROWS = 512  # blocks in one message
_MOST_UNTOLD = 64  # messages that wait for an acceptor; past it the whole list is sent anew
_SWEEP_SCORES = 256
_AGAIN_S = 1.0
_LISTED = 500  # blocks in one answer to an operator
_LONGEST_PRINCIPAL = 512
LONGEST_OPERATORS_MS: Final = 10 * 366 * 86_400_000


class _Told:
    """What one acceptor has still to be told."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.queue: deque[Message] = deque()


class Blocking:
    """The state and the decisions; ``limiter`` calls it within its turn.

    Args:
      record: applies a record and has it written to the journal with the turn's others.
      wake: has ``flush`` called soon.
    """

    def __init__(
        self,
        context: Context,
        store: BlockStore,
        record: Callable[[ScoreRecord], None],
        wake: Callable[[], None],
    ) -> None:
        settings = context.settings
        self.automatic = settings.auto_block_enabled
        self.scoring = Scoring(
            ScoringRule(
                threshold=settings.threat_threshold,
                half_life_ns=settings.threat_half_life_ms * _MS,
                max_failed_attempts=settings.max_failed_attempts,
                failed_window_ns=settings.failed_attempts_window_ms * _MS,
            )
        )
        self.blocks = Blocks(settings.block_duration)
        self.audit = AuditRing.kept(
            context.keep, context.address("audit"), context.name, policy=settings.audit_on_full
        )
        self.offences = 0
        self.store_errors = 0
        self._record = record
        self._wake = wake
        self._trusted = AddressSet.of(settings.trusted_proxies)
        self._store = store
        self._acceptors: dict[str, _Told] = {}
        # Key -> what is to be on disk: the block, or None for nothing. What is being written is in ``_writing``.
        self._unwritten: dict[str, Block | None] = {}
        self._writing: dict[str, Block | None] = {}
        self._to_write = trio.Event()
        self._waiting: list[tuple[Delivery, Done]] = []  # operators' answers, for when ``_unwritten`` is written
        self._said_full = False
        self._said_evicting = False

    def restore(self, kept: Iterable[Block]) -> None:
        """After the journal was read: bring blocks back, and block whom the last incarnation was about to block.

        With AUTO_BLOCK_ENABLED=false earlier automatic blocks don't hold; they stay on disk.
        """
        now_ms = _wall_ms()
        for block in kept:
            if self.automatic or not block.automatic:
                self.blocks.restore(block)
        _, forgotten = self.blocks.sweep(now_ms)
        for key in forgotten:
            self._write(key, None)
        if not self.automatic:
            return
        self._block_due(self.scoring.all_due(), now_ms)

    # --- what acceptors and operators say

    def take(self, delivery: Delivery, now: int) -> Message | None:
        """Deal with a message of this part. The answer, None when there is none or it comes later."""
        message = delivery.message
        if isinstance(message, Offences):
            self._offended(message, now)
        elif isinstance(message, BlockClient):
            return self._operator_blocks(delivery, message)
        elif isinstance(message, UnblockClient):
            return self._operator_unblocks(delivery, message)
        elif isinstance(message, ListBlocks):
            return self._listing(message)
        return None

    def _offended(self, message: Offences, now: int) -> None:
        if not self.automatic:
            return
        now_ms = _wall_ms()
        touched: dict[str, None] = {}
        for key, principal, kind, count in message.rows:
            subject = PRINCIPAL + principal if principal else key
            if count < 1 or kind not in OFFENCES or not subject or self.blocks.get(subject, now_ms) is not None:
                continue  # whoever is blocked prolongs nothing
            self.offences += count
            self._record(self.scoring.note(subject, kind, count, now))
            touched[subject] = None
        self._block_due([(subject, due) for subject in touched if (due := self.scoring.due(subject))], now_ms)

    def _block_due(self, due: list[tuple[str, str]], now_ms: int) -> None:
        for key, reason in due:
            block = self.blocks.block(key, now_ms, reason)
            if block is not None:
                self._enforced(block)
                self._evicted()
            elif self.blocks.get(key, now_ms) is not None:
                self._record(Forgiven(key))  # the block is there, only this had not been noted
            elif not self._said_full:
                self._said_full = True
                log.error("operators have blocked %d addresses, more than that is not kept", len(self.blocks))

    def _operator_blocks(self, delivery: Delivery, message: BlockClient) -> Done | None:
        try:
            key = self._target(message.target)
        except ValueError as error:
            return Done(False, str(error))
        lasts_ms = message.lasts_ms or self.blocks.duration_ms
        if not 0 < lasts_ms <= LONGEST_OPERATORS_MS:
            return Done(False, "a block lasts between a millisecond and ten years")
        if self._is_trusted(key):
            return Done(False, f"{key.removeprefix('ip:')} holds one of TRUSTED_PROXIES, which are never blocked")
        block = self.blocks.block_by_operator(key, _wall_ms(), lasts_ms)
        if block is None:
            return Done(False, "too many blocks are in force")
        self._enforced(block)
        self._evicted()
        self._waiting.append((delivery, Done(True, key)))
        return None

    def _operator_unblocks(self, delivery: Delivery, message: UnblockClient) -> Done | None:
        try:
            key = self._target(message.target)
        except ValueError as error:
            return Done(False, str(error))
        lifted = self.blocks.unblock(key, _wall_ms())
        # Offences so far, and the memory of blocks that have ended, are forgiven too.
        self._record(Forgiven(key))
        self._write(key, None)
        if lifted is None:
            self._tell(Unblocked([key]))  # auth may have counted failures that led to no block
            return Done(False, "no block of this address or principal is in force")
        self._lifted([lifted], "operator")
        self._waiting.append((delivery, Done(True, key)))
        return None

    def _target(self, target: str) -> str:
        """The key that an operator means. Raises ValueError."""
        if target.startswith(PRINCIPAL):
            if target == PRINCIPAL or len(target) > _LONGEST_PRINCIPAL:
                raise ValueError("no principal has this name")
            return target
        try:
            return client_key(target)
        except ValueError:
            raise ValueError("neither an IP address nor principal:NAME") from None

    def _is_trusted(self, key: str) -> bool:
        """Whether a block of this key would be one of a trusted proxy, too: an IPv6 address is blocked by its /64."""
        if key.startswith(PRINCIPAL) or not self._trusted:
            return False
        address, _, bits = key.removeprefix("ip:").partition("/")
        return self._trusted.meets(f"{address.partition('%')[0]}/{bits}" if bits else address)

    def _listing(self, message: ListBlocks) -> BlockListing:
        now_ms = _wall_ms()
        keys = sorted(block.key for block in self.blocks.active() if block.until_ms > now_ms)
        start = bisect_right(keys, message.after) if message.after else 0
        rows = []
        for key in keys[start : start + _LISTED]:
            block = self.blocks.get(key, now_ms)
            if block is not None:
                rows.append((key, block.since_ms, block.until_ms, block.strikes, block.automatic, block.reason))
        return BlockListing(rows, len(keys), start + _LISTED < len(keys))

    # --- what follows

    def refuses(self, key: str, *, exempt: bool) -> bool:
        """Whether a connection of this address may not come in."""
        block = self.blocks.get(key, _wall_ms())
        return block is not None and not (exempt and block.automatic)

    def _enforced(self, block: Block) -> None:
        self._write(block.key, block)
        self._tell(Blocked([(block.key, block.until_ms, block.automatic)]))
        self._event("ip.blocked", block, block.reason, "warning")
        self._wake()

    def _lifted(self, blocks: list[Block], reason: str) -> None:
        for start in range(0, len(blocks), _ROWS):
            self._tell(Unblocked([block.key for block in blocks[start : start + _ROWS]]))
        for block in blocks:
            self._event("ip.unblocked", block, reason, "info")
        self._wake()

    def _evicted(self) -> None:
        """Blocks that had to make room for worse ones are over."""
        evicted = self.blocks.take_evicted()
        if not evicted:
            return
        if not self._said_evicting:
            self._said_evicting = True
            log.warning("%d addresses are blocked: from now on the block that ends first makes room", len(self.blocks))
        for block in evicted:
            self._write(block.key, None)
        self._lifted(evicted, "room")

    def sweep(self, now: int) -> None:
        """What happens by the clock."""
        self.scoring.sweep(now, _SWEEP_SCORES)
        ended, forgotten = self.blocks.sweep(_wall_ms())
        self._lifted(ended, "expired")
        for key in forgotten:
            self._write(key, None)
        self.flush()

    @property
    def next_due_ns(self) -> int | None:
        """When ``flush`` has something to do, as far as is known now."""
        due = self.audit.next_due_ns
        if any(told.queue for told in self._acceptors.values()):
            soon = time.monotonic_ns() + 50 * _MS
            due = soon if due is None else min(due, soon)
        return due

    def _event(self, event: str, block: Block, reason: str, severity: Literal["info", "warning"]) -> None:
        """The address of a key that stands for a /64 is that prefix."""
        principal = block.key.removeprefix(PRINCIPAL) if block.key.startswith(PRINCIPAL) else ""
        self.audit.record(
            AuditEvent(
                event=event,
                severity=severity,
                outcome="success",
                time_ns=time.time_ns(),
                peer_ip="" if principal else block.key.removeprefix("ip:"),
                principal=principal,
                reason=reason,
                detail={
                    "until": _rfc3339(block.until_ms),
                    "strikes": block.strikes,
                    "by": "threat detection" if block.automatic else "operator",
                },
            )
        )

    # --- to the acceptors

    def acceptor_up(self, name: str, address: Address) -> None:
        """A new incarnation of an acceptor: it is told all blocks."""
        told = self._acceptors[name] = _Told(address)
        told.queue.extend(self._everything())

    def acceptor_down(self, name: str) -> None:
        self._acceptors.pop(name, None)

    def _everything(self) -> Iterator[Blocked]:
        rows = [(block.key, block.until_ms, block.automatic) for block in self.blocks.active()]
        starts = range(0, max(1, len(rows)), _ROWS)
        for start in starts:
            yield Blocked(rows[start : start + _ROWS], first=start == 0, last=start == starts[-1])

    def _tell(self, message: Message) -> None:
        for told in self._acceptors.values():
            told.queue.append(message)

    def flush(self) -> None:
        """Send what there is to send."""
        most = _MOST_UNTOLD + len(self.blocks) // _ROWS
        for told in self._acceptors.values():
            if len(told.queue) > most:
                told.queue = deque(self._everything())
            while told.queue:
                try:
                    told.address.control(told.queue[0])
                except (ActorDown, MailboxFull):
                    break  # gone, and its successor is told everything; or busy, and asked again soon
                told.queue.popleft()
        self.audit.flush()

    # --- to the disk

    def _write(self, key: str, block: Block | None) -> None:
        self._unwritten[key] = block
        self._to_write.set()

    async def write_on(self, written: Callable[[], None]) -> None:
        """Write whatever there is to write, off the loop. ``written`` is called after what was recorded for it."""
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            batch, self._unwritten = self._unwritten, {}
            self._writing = batch
            waiting, self._waiting = self._waiting, []
            trouble = ""
            try:
                await trio.to_thread.run_sync(self._put, batch)
            except sqlite3.Error as error:
                trouble = self._not_written(batch, error)
            else:
                self._settled(batch)
            self._writing = {}
            written()
            for delivery, done in waiting:
                if delivery.wants_reply:
                    delivery.reply(Done(False, trouble) if trouble else done)
            if trouble:
                await trio.sleep(_AGAIN_S)
                self._to_write.set()

    def _put(self, batch: dict[str, Block | None]) -> None:
        kept = [block for block in batch.values() if block is not None]
        self._store.write(kept, [key for key, block in batch.items() if block is None])

    def _settled(self, batch: dict[str, Block | None]) -> None:
        self.store_errors = 0
        for key, block in batch.items():
            if block is not None and self.scoring.due(key):
                self._record(Forgiven(key))

    def _not_written(self, batch: dict[str, Block | None], error: sqlite3.Error) -> str:
        """It is in force all the same; it is only not certain to survive a restart yet."""
        if not self.store_errors:
            log.error("%s: %s; blocks hold, and are written as soon as that is possible", self._store.path, error)
        self.store_errors += 1
        self._unwritten = {**batch, **self._unwritten}
        return f"in force, but not on disk yet: {error}"

    # --- the rest

    def describe(self) -> dict[str, object]:
        return {
            "blocks": len(self.blocks),
            "blocks_remembered": self.blocks.remembered(),
            "blocks_without_room": self.blocks.full,
            "blocks_unwritten": len(self._unwritten) + len(self._writing),
            "scored": len(self.scoring),
            "scores_evicted": self.scoring.evicted,
            "offences": self.offences,
            "store_errors": self.store_errors,
            "audit": attrs.asdict(self.audit.statistics()),
        }

    def close(self) -> None:
        """Write what is left, on the loop: the actor ends. What was being written may be written twice, or not yet."""
        batch = {**self._writing, **self._unwritten}
        if batch:
            self._unwritten = {}
            try:
                self._put(batch)
            except sqlite3.Error as error:
                self._not_written(batch, error)
            else:
                self._settled(batch)
        self._store.close()


def _wall_ms() -> int:
    return time.time_ns() // _MS


def _rfc3339(wall_ms: int) -> str:
    seconds, ms = divmod(wall_ms, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ms:03d}Z"


