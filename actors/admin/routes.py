"""The table of what the health listener serves, and how each of it is made."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import attrs
import msgspec
import trio

from ipc.address import Address
from ipc.context import Context
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import (
    AdminRequest,
    AuditEvent,
    AuthenticateAdmin,
    Description,
    Disconnect,
    Done,
    EndSession,
    Grant,
    ListSessions,
    Message,
    Refused,
    ResetBreaker,
    RevokeTokens,
)

from ..audit_ring import AuditRing
from ..policy.credential_like import is_credential
from . import blocks, live, metrics, page, targets
from .access import Access, insufficient, unauthorized
from .answers import JSON, Answer, Problem, document
from .connection import Request
from .health import Health, connections_of, judge
from .rates import Rates
from .recent import Recent
from .survey import Survey
from .tree import Tree

API = "/admin/v1"
_LONGEST_NAME = 1024  # a principal's, with every character escaped
_LONGEST_SUBJECT = 1024  # an outside issuer's name and its name for somebody
_PATIENCE_NS = 1_000_000_000
_STALE_TREE_NS = 10_000_000_000

Guard = Literal["open", "page", "details", "admin"]


@attrs.define(eq=False)
class State:
    """What is known of the gateway. ``tree`` is the supervisor's last word, ``tree_at_ns`` when it came."""

    context: Context
    survey: Survey
    audit: AuditRing
    started_ns: int
    metrics: metrics.Metrics
    tree: Tree | None = None
    tree_at_ns: int = 0
    counts: dict[str, int] = attrs.field(factory=dict)
    rates: Rates = attrs.field(factory=Rates)
    recent: Recent = attrs.field(init=False)

    @recent.default
    def _of_our_log(self) -> Recent:
        return Recent(Path(self.context.settings.audit_log_dir))

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def health(self) -> Health:
        now = time.monotonic_ns()
        return judge(self.context.settings, self.survey.views(), self.tree, now, (now - self.started_ns) / 1e9)

    def hear(self) -> None:
        """Add what the actors and the supervisor say now to what was counted before."""
        self.metrics.hear(self.survey.views(), self.tree, self.counts)

    def tree_age_s(self) -> float:
        return round((time.monotonic_ns() - self.tree_at_ns) / 1e9, 3) if self.tree is not None else 0.0


class _Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str = ""
    jti: str = ""
    principal: str = ""


_revocation_decoder = msgspec.json.Decoder(_Revocation)


Make = Callable[["Routes", Request, str], Awaitable[Answer]]


@attrs.frozen
class Route:
    """``path`` may hold one ``*``, which stands for one segment and is handed to ``make``."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    guard: Guard
    make: Make

    def match(self, target: str) -> str | None:
        """The segment at ``*``, "" where there is none; None if the path is another one."""
        before, star, after = self.path.partition("*")
        if not star:
            return "" if target == self.path else None
        if not (target.startswith(before) and target.endswith(after)) or len(target) <= len(before) + len(after):
            return None
        segment = target[len(before) : len(target) - len(after)]
        return segment if "/" not in segment and len(segment) <= _LONGEST_NAME else None


class Routes:
    """All requests of one listener. ``local``: it is bound to loopback."""

    def __init__(self, state: State, *, local: bool) -> None:
        self.state = state
        self._local = local
        self.configure()
        self._table = _table(state)

    def configure(self) -> None:
        """Go by the settings as they are now."""
        self.access = Access.of(self.state.context.settings, local=self._local)

    async def handle(self, request: Request) -> Answer:
        """Raises Problem."""
        self.state.count("requests")
        self.access.check_host(request)
        allowed: list[str] = []
        for route in self._table:
            segment = route.match(request.target)
            if segment is None:
                continue
            if request.method == route.method or (request.method == "HEAD" and route.method == "GET"):
                return await route.make(self, await self._guard(route, request), segment)
            allowed += ["GET", "HEAD"] if route.method == "GET" else [route.method]
        if request.target.startswith(f"{API}/"):
            # What exists below is nobody's business without the token.
            await self._require_admin(request)
        if allowed:
            raise Problem(405, f"{request.target} takes {', '.join(allowed)}", (("Allow", ", ".join(allowed)),))
        raise Problem(404, "nothing is served at this path")

    async def _guard(self, route: Route, request: Request) -> Request:
        """The request, with who makes it. Raises Problem."""
        if route.guard == "admin":
            return await self._require_admin(request)
        if route.guard == "details" and not await self._may_see_details(request):
            raise unauthorized("none")
        if route.guard == "page":
            self.access.require_admin_api()
        return request

    async def _require_admin(self, request: Request) -> Request:
        try:
            self.access.require_admin(request)
        except Problem as problem:
            token = self.access.signed_token(request) if problem.status == 401 else ""
            if token:
                return await self._of_scope(request, token)
            self.state.count("unauthorized")
            if problem.status == 401 and self.access.credential(request) == "bad":
                self._record(request, "auth.failed", "failure", {"path": targets.path(request.target)})
            raise
        return request

    async def _may_see_details(self, request: Request) -> bool:
        """Raises Problem for a credential that isn't good."""
        token = self.access.signed_token(request) if self.access.credential(request) == "bad" else ""
        if token:
            await self._of_scope(request, token)
        return bool(token) or self.access.may_see_details(request)

    async def _of_scope(self, request: Request, token: str) -> Request:
        """Auth is asked each time: what has been revoked or has expired is over at once."""
        (answer,) = await self._ask("auth", AuthenticateAdmin(token, request.peer))
        if isinstance(answer, Grant):
            return attrs.evolve(request, principal=answer.principal)
        if not isinstance(answer, Refused) or answer.reason == "unavailable":
            raise Problem(503, "the token can't be judged now; ADMIN_TOKEN can", (("Retry-After", "1"),))
        self.state.count("unauthorized")
        if answer.reason == "block":
            raise Problem(403, answer.detail)
        raise insufficient() if answer.reason == "forbidden" else unauthorized("bad")

    # --- health

    async def livez(self, _request: Request, _segment: str) -> Answer:
        """The process turns, or it would not answer."""
        await trio.lowlevel.checkpoint()
        return document({"status": "alive"})

    async def readyz(self, request: Request, _segment: str) -> Answer:
        await trio.lowlevel.checkpoint()
        health = self.state.health()
        body: dict[str, object] = {"ready": health.ready}
        if await self._may_see_details(request):
            body["reasons"] = list(health.unready)
        return document(body, 200 if health.ready else 503)

    async def health(self, request: Request, _segment: str) -> Answer:
        await trio.lowlevel.checkpoint()
        health = self.state.health()
        body = health.document if await self._may_see_details(request) else {"status": health.status}
        return document(body, 503 if health.status == "unhealthy" else 200)

    async def metrics(self, _request: Request, _segment: str) -> Answer:
        await trio.lowlevel.checkpoint()
        state = self.state
        shown = state.metrics.exposition(state.health(), state.survey.views(), state.tree, state.counts)
        return Answer(200, shown, metrics.CONTENT_TYPE)

    # --- what operators see

    async def connections(self, _request: Request, _segment: str) -> Answer:
        """``missing`` names the acceptors whose connections are not in the list."""
        await self.state.survey.refresh()
        views = self.state.survey.views("acceptor")
        rows = [row for view in views if view.answering for row in connections_of(view)]
        return document({"connections": rows, "missing": [view.name for view in views if not view.answering]})

    async def actors(self, _request: Request, _segment: str) -> Answer:
        await trio.lowlevel.checkpoint()
        if self.state.tree is None:
            raise Problem(503, "the supervisor has not told its tree yet", (("Retry-After", "1"),))
        return document({**self.state.tree.document(), "age_s": self.state.tree_age_s()})

    async def breakers(self, _request: Request, _segment: str) -> Answer:
        await self.state.survey.refresh()
        rows = {
            upstream.name: {"state": upstream.breaker, "retry_in_ms": upstream.retry_in_ms}
            for upstream in self.state.health().upstreams
        }
        views = self.state.survey.views("breaker")
        return document({"breakers": rows, "missing": [view.name for view in views if not view.answering]})

    # --- what operators do

    async def reset_breaker(self, request: Request, name: str) -> Answer:
        name = unquote(name, errors="replace")
        answers = await self._ask("breaker", ResetBreaker(name))
        return self._done(request, "breaker.reset", targets.name(name), answers, "no server has this name")

    async def disconnect(self, request: Request, connection: str) -> Answer:
        answers = await self._ask("acceptor", Disconnect(connection))
        missing = "no connection has this id"
        return self._done(request, "connection.disconnect", targets.connection(connection), answers, missing)

    async def sessions(self, _request: Request, _segment: str) -> Answer:
        """Issued sessions, the oldest first."""
        (answer,) = await self._ask("auth", ListSessions())
        if not isinstance(answer, Description):
            raise Problem(503, "auth did not answer", (("Retry-After", "1"),))
        return Answer(200, answer.data, JSON)

    async def end_session(self, request: Request, session: str) -> Answer:
        answers = await self._ask("auth", EndSession(session))
        return self._done(request, "session.end", targets.session(session), answers, "no session has this id")

    async def revoke_tokens(self, request: Request, _segment: str) -> Answer:
        """A JSON object with one of ``token``, ``jti`` and ``principal``. The token is not recorded."""
        try:
            wanted = _revocation_decoder.decode(request.body)
        except (msgspec.DecodeError, RecursionError):
            raise Problem(400, "the body must be a JSON object with token, jti or principal") from None
        if sum(map(bool, (wanted.token, wanted.jti, wanted.principal))) != 1:
            raise Problem(400, "exactly one of token, jti and principal is to be given")
        if max(len(wanted.jti), len(wanted.principal)) > _LONGEST_SUBJECT:
            raise Problem(400, f"jti and principal have at most {_LONGEST_SUBJECT} characters")
        if is_credential(wanted.jti) or is_credential(wanted.principal):
            raise Problem(400, "this is a credential, not the name of one: give it as token")
        answers = await self._ask("auth", RevokeTokens(wanted.token, wanted.jti, wanted.principal))
        target = targets.name(wanted.principal or wanted.jti or "token")
        missing = "this is neither a live session's token nor a signed one"
        return self._done(request, "token.revoke", target, answers, missing)

    async def blocks(self, _request: Request, _segment: str) -> Answer:
        return document(await blocks.listing(self.state.context.address("limiter")))

    async def block(self, request: Request, _segment: str) -> Answer:
        wanted = blocks.wish(request.body)
        return await self._rule(request, "block", wanted.target, wanted)

    async def unblock(self, request: Request, target: str) -> Answer:
        target = unquote(target, errors="replace")
        return await self._rule(request, "unblock", target, blocks.pardon(target))

    async def _rule(self, request: Request, action: str, target: str, message: Message) -> Answer:
        (done,) = await self._ask("limiter", message)
        detail = {"action": action, "target": targets.client(target)}
        if not isinstance(done, Done):
            self._record(request, "admin.action", "failure", detail)
            raise Problem(503, "the limiter does not answer", (("Retry-After", "1"),))
        self._record(request, "admin.action", "success" if done.ok else "failure", detail)
        if not done.ok:
            raise Problem(409 if action == "block" else 404, done.detail)
        return document({"ok": True, "detail": done.detail})

    async def drain(self, request: Request, _segment: str) -> Answer:
        # Recorded first: once the gateway drains, the record may come too late.
        self._record(request, "admin.action", "success", {"action": "drain"})
        return await self._granted("drain", 202)

    async def reload(self, request: Request, _segment: str) -> Answer:
        # What becomes of it is recorded as config.reloaded or config.refused.
        self._record(request, "admin.action", "success", {"action": "reload"})
        return await self._granted("reload", 200)

    async def _granted(self, verb: Literal["drain", "reload"], status: int) -> Answer:
        """What only the supervisor can do."""
        answers = await self._ask("supervisor", AdminRequest(verb))
        done = answers[0]
        if not isinstance(done, Done):
            raise Problem(503, "the supervisor did not answer", (("Retry-After", "1"),))
        if not done.ok:
            raise Problem(409, done.detail or f"the gateway refuses to {verb}")
        return document({"ok": True, "detail": done.detail}, status)

    async def _ask(self, kind: str, message: Message) -> list[Message | None]:
        """All actors of that kind at once; None for each that is down or did not answer in time."""
        context = self.state.context
        names = (kind,) if kind == "supervisor" else context.peers(kind)
        answers: list[Message | None] = []
        deadline_ns = time.monotonic_ns() + _PATIENCE_NS

        async def ask(address: Address) -> None:
            try:
                answers.append(await address.ask(message, deadline_ns))
            except (ActorDown, DeadlineExceeded):
                answers.append(None)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, context.address(name))
        return answers

    def _done(
        self, request: Request, action: str, target: str, answers: list[Message | None], missing: str
    ) -> Answer:
        done = next((answer for answer in answers if isinstance(answer, Done) and answer.ok), None)
        outcome: Literal["success", "failure"] = "success" if done is not None else "failure"
        self._record(request, "admin.action", outcome, {"action": action, "target": target})
        if done is not None:
            return document({"ok": True, "detail": done.detail})
        if not any(isinstance(answer, Done) for answer in answers) or None in answers:
            # It may be at one of those who did not answer.
            raise Problem(503, "not everybody who may know it answered", (("Retry-After", "1"),))
        raise Problem(404, missing)

    def _record(
        self, request: Request, event: str, outcome: Literal["success", "failure"], detail: dict[str, str]
    ) -> None:
        self.state.audit.record(
            AuditEvent(
                event=event,
                severity="info" if outcome == "success" else "warning",
                outcome=outcome,
                time_ns=time.time_ns(),
                transport="admin",
                peer_ip=request.peer,
                principal=request.principal,
                detail=dict(detail),
            )
        )
        self.state.audit.flush()


def _table(state: State) -> tuple[Route, ...]:
    settings = state.context.settings
    scraped = Route("GET", settings.metrics_path, "details", Routes.metrics)
    return (
        Route("GET", "/livez", "open", Routes.livez),
        Route("GET", "/readyz", "open", Routes.readyz),
        Route("GET", "/health", "open", Routes.health),
        *((scraped,) if settings.metrics_enabled else ()),
        Route("GET", "/", "page", page.root),
        *(Route("GET", path, "page", page.file) for path in page.FILES),
        Route("GET", f"{API}/openapi.json", "admin", page.openapi),
        Route("GET", f"{API}/overview", "admin", live.whole),
        Route("GET", f"{API}/events", "admin", live.events),
        Route("GET", f"{API}/connections", "admin", Routes.connections),
        Route("GET", f"{API}/actors", "admin", Routes.actors),
        Route("GET", f"{API}/breakers", "admin", Routes.breakers),
        Route("POST", f"{API}/breakers/*/reset", "admin", Routes.reset_breaker),
        Route("POST", f"{API}/connections/*/disconnect", "admin", Routes.disconnect),
        Route("GET", f"{API}/sessions", "admin", Routes.sessions),
        Route("DELETE", f"{API}/sessions/*", "admin", Routes.end_session),
        Route("POST", f"{API}/sessions/*/end", "admin", Routes.end_session),
        Route("POST", f"{API}/tokens/revoke", "admin", Routes.revoke_tokens),
        Route("GET", f"{API}/blocks", "admin", Routes.blocks),
        Route("POST", f"{API}/blocks", "admin", Routes.block),
        Route("DELETE", f"{API}/blocks/*", "admin", Routes.unblock),
        Route("POST", f"{API}/reload", "admin", Routes.reload),
        Route("POST", f"{API}/drain", "admin", Routes.drain),
    )
