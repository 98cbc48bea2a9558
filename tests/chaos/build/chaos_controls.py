"""Guards that can be turned off, one at a time, to see that the judge notices. For tests only."""

from __future__ import annotations

from typing import Any

from actors.acceptor.answers import Answers
from actors.acceptor.hub import Estate
from actors.policy.leases import LeasePolicy
from actors.policy.shared_instance import SharedInstance
from actors.upstream.bridge import Bridge
from supervisor.spawn import Process
from supervisor.tree import WorkerTree


def in_supervisor(control: str) -> None:
    """``fencing``: a worker that hangs is replaced while it still lives."""
    if control != "fencing":
        return
    gone = WorkerTree._gone

    async def fence(self: Process, fault: str) -> None:
        self.fault = fault
        for tree in _trees:
            gone(tree, self)

    _trees: list[WorkerTree] = []
    begin = WorkerTree.__init__

    def init(self: WorkerTree, **arguments: Any) -> None:
        begin(self, **arguments)
        _trees.append(self)

    WorkerTree.__init__ = init
    Process.fence = fence


def in_worker(control: str, context: Any) -> None:
    """What an actor is without one of its guards."""
    match control:
        case "incarnations":
            # Numbers begin anew in each incarnation, and the bridge does not notice that there is another one.
            context.keep.setdefault("estate", Estate(next_session=1))
            Bridge._check_incarnation = lambda self, acceptor: None
        case "leases":
            LeasePolicy._use = lambda self, lease, known, units, at_ns, now: self._settle(lease, known, units, now)
        case "pending":
            Answers.failed = lambda self, session, number, code, reason, sent, retry_ms: None
        case "ids":
            _pass_ids_on()


def _pass_ids_on() -> None:
    """A client's own id goes to the upstream."""
    if hasattr(SharedInstance, "chaos"):
        return
    SharedInstance.chaos = True
    send = SharedInstance._send

    def send_unminted(self: Any, session: Any, known: Any, call: int, envelope: Any, raw: bytes, now: int) -> Any:
        self._mint = lambda: envelope.id
        try:
            return send(self, session, known, call, envelope, raw, now)
        finally:
            del self._mint

    SharedInstance._send = send_unminted
