"""The four actors of the policy worker die alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from policy_worker import policy_worker

from actors import audit, auth, breaker, limiter
from ipc.errors import ActorDown
from ipc.messages import (
    AuditAck,
    AuditBatch,
    AuditEvent,
    Authenticate,
    BreakerSnapshot,
    BreakerSubscribe,
    Grant,
    Lease,
    LeaseRequest,
    Message,
)

MAINS = {"auth": auth.main, "limiter": limiter.main, "breaker": breaker.main, "audit": audit.main}
STEPS: dict[str, Any] = {
    "auth": (auth.Auth, "serve"),
    "limiter": (limiter.Limiter, "_take"),
    "breaker": (breaker.Breaker, "_take"),
    "audit": (audit.Audit, "_take"),
}
EVENT = AuditEvent("call.completed", "info", "success", 1)
QUESTIONS: dict[str, tuple[Message, type[Message]]] = {
    "auth": (Authenticate(listener="ws", scheme="token", credential="w", peer_ip="::1"), Grant),
    "limiter": (LeaseRequest("acceptor.0", ("ip:k",), 1), Lease),
    "breaker": (BreakerSubscribe("acceptor.0"), BreakerSnapshot),
    "audit": (AuditBatch("test~1", 0, [EVENT]), AuditAck),
}


@pytest.mark.parametrize("victim", list(MAINS))
async def test_one_that_raises_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """When one raises it ends alone; the others answer in the same incarnation, and so does its own next one."""
    async with policy_worker(tmp_path, ws_auth_token=("w",)) as worker:
        worker.open("acceptor.0")
        for name, main in MAINS.items():
            await worker.start(name, main)
        incarnations = {name: worker.exchange.address(name).incarnation for name in MAINS}
        owner, step = STEPS[victim]
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, lambda *_: 1 / 0)
            with pytest.raises(ActorDown):
                await worker.ask(victim, QUESTIONS[victim][0])
        assert [name for name, _ in worker.crashes] == [victim]
        for name in MAINS.keys() - {victim}:
            question, answer = QUESTIONS[name]
            assert isinstance(await worker.ask(name, question), answer)
            assert worker.exchange.address(name).incarnation == incarnations[name]
        await worker.start(victim, MAINS[victim])
        question, answer = QUESTIONS[victim]
        assert isinstance(await worker.ask(victim, question), answer)
        for name in MAINS:
            assert await worker.describe(name)
            await worker.drain(name)
        assert len(worker.crashes) == 1
