"""The admin API as it is described, audited, and shown live."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import trio
from admin_bench import ADMIN_TOKEN, SETTINGS, Bench, bench

from actors.admin.page import FILES, POLICY
from actors.admin.rates import HISTORY, Rates
from actors.admin.recent import CALLS_KEPT, KEPT, Recent
from actors.admin.routes import API, Route, Routes, State, _table
from actors.admin.survey import View
from actors.audit_log import ACTIVE, AuditLog, Entry
from ipc.messages import AuditEvent, BlockListing, Description, Done, ListBlocks, ListSessions, Message
from ipc.settings import Settings

ADMIN = Path(__file__).parents[2] / "actors" / "admin"
DESCRIBED: dict[str, Any] = json.loads((ADMIN / "openapi.json").read_text())
PAGE = ADMIN / "page"

ROW = {
    "id": "c1", "transport": "ws", "peer": "127.0.0.1:5", "principal": "ann", "age_s": 5.0, "idle_s": 1.0,
    "messages_in": 3, "messages_out": 2, "bytes_in": 30, "bytes_out": 20, "worker": "edge.0", "upstream": "time",
}  # fmt: skip
TREE = {
    "workers": [
        {
            "name": "policy", "role": "policy", "pid": 7, "state": "up", "incarnation": 1, "restarts": 2,
            "rss_kb": 9000,
            "actors": [
                {"name": "limiter", "state": "up", "incarnation": 3, "restarts": 1,
                 "mailbox": {"queued": 4, "received": 900, "refused": 0}},
            ],
        },
    ],
}  # fmt: skip
BLOCK = ("ip:192.0.2.9", 1, 2**52, 2, True, "failed authentication")
# What a request that changes something needs, by its path in the description: the segment's value, and the body.
CHANGES = {
    ("post", f"{API}/connections/{{id}}/disconnect"): b"",
    ("post", f"{API}/breakers/{{name}}/reset"): b"",
    ("delete", f"{API}/sessions/{{id}}"): b"",
    ("post", f"{API}/sessions/{{id}}/end"): b"",
    ("post", f"{API}/tokens/revoke"): b'{"token": "s3cret-of-somebody"}',
    ("post", f"{API}/blocks"): b'{"ip": "192.0.2.1"}',
    ("delete", f"{API}/blocks/{{target}}"): b"",
    ("post", f"{API}/reload"): b"",
    ("post", f"{API}/drain"): b"",
}


def routes() -> tuple[Route, ...]:
    class _Context:
        settings = SETTINGS

    return _table(State(_Context(), None, None, 0, None))  # type: ignore[arg-type]


def described(path: str) -> str:
    """A path of the description in the form of the route table."""
    return re.sub(r"\{[a-z]+\}", "*", path)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DESCRIBED["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def settings_with(logs: Path, **more: Any) -> Settings:
    return msgspec.structs.replace(SETTINGS, audit_log_dir=str(logs), **more)


def event(name: str = "auth.failed", **more: Any) -> AuditEvent:
    return AuditEvent(event=name, severity="warning", outcome="failure", time_ns=time.time_ns(), **more)


def log_in(directory: Path, *, max_bytes: int = 1 << 20) -> AuditLog:
    return AuditLog(directory, str(directory / "state"), max_bytes=max_bytes, keep=50, counted=list)


async def known(made: Bench) -> None:
    """Everybody around admin has something to tell, and admin has heard it."""

    def limiter(message: Message) -> Message:
        return BlockListing([BLOCK], 1, more=False) if isinstance(message, ListBlocks) else Done(ok=True)

    def auth(message: Message) -> Message:
        sessions = [{"id": "s", "principal": "ann", "scopes": ["mcp:call"], "created": 1, "used": 2, "expires": 3}]
        if isinstance(message, ListSessions):
            return Description(json.dumps({"sessions": sessions, "total": 1}).encode())
        return Done(ok=True)

    made.actors["limiter"].answer = limiter
    made.actors["limiter"].data = {"keys": 3, "blocks": 1}
    made.actors["auth"].answer = auth
    for name in ("acceptor.0", "acceptor.1", "breaker", "supervisor"):
        made.actors[name].answer = lambda _message: Done(ok=True)
    made.actors["acceptor.0"].data = {"connections": [ROW], "totals": {"messages_in": 3, "invalid": 2}}
    made.actors["bridge"].data = {"upstreams": {"time": {"state": "up", "instances": []}}}
    made.actors["breaker"].data = {"circuits": {"time": {"state": "open", "retry_at_ns": 2**62, "openings": 1}}}
    made.tree(**TREE)
    while not (await made.request("GET", f"{API}/connections", token=ADMIN_TOKEN)).json["connections"]:
        await trio.lowlevel.checkpoint()


# --- the description


def test_the_description_has_every_route_of_the_api_and_no_other() -> None:
    """Method by method, and each is behind the token."""
    table = {(route.method.lower(), route.path) for route in routes() if route.path.startswith(f"{API}/")}
    assert {(method, described(path)) for method, path, _ in operations()} == table
    assert DESCRIBED["security"] == [{"adminToken": []}]
    for route in routes():
        assert (route.guard == "admin") == route.path.startswith(f"{API}/"), route.path
    for method, path, operation in operations():
        assert "security" not in operation, (method, path)
        assert {"401", "403"} <= operation["responses"].keys(), (method, path)
        named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert named == set(re.findall(r"\{([a-z]+)\}", path)), (method, path)
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))


def test_every_reference_in_the_description_leads_somewhere_and_everything_is_used() -> None:
    """No schema or answer is there for nothing."""
    used = set(re.findall(r'"\$ref": "#/components/([a-zA-Z/]+)"', json.dumps(DESCRIBED)))
    components = DESCRIBED["components"]
    there = {f"{kind}/{name}" for kind in ("responses", "schemas") for name in components[kind]}
    assert used == there
    for name in components["schemas"]:
        validator({"$ref": f"#/components/schemas/{name}"})


def validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": DESCRIBED["components"]})


def schema_of(operation: dict[str, Any], status: int) -> dict[str, Any]:
    """What the description says of this status's body."""
    answer = operation["responses"][str(status)]
    if "$ref" in answer:
        answer = DESCRIBED["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    (content,) = answer["content"].values()
    found: dict[str, Any] = content["schema"]
    return found


async def test_what_is_answered_is_what_is_described(tmp_path: Path) -> None:
    """Every operation, really called: its answer, and its refusal without the token and with a wrong one."""
    log = log_in(tmp_path)
    log.write(Entry([event(peer_ip="192.0.2.1"), event("call.completed", detail={"tool": "x"})]))
    async with bench(settings_with(tmp_path)) as made:
        await known(made)
        for method, path, operation in operations():
            target = re.sub(r"\{[a-z]+\}", "x", path)
            body = CHANGES.get((method, path), b"")
            for token in (ADMIN_TOKEN, None, "wrong"):
                reply = await made.request(method.upper(), target, token=token, body=body)
                assert (reply.status < 300) == (token == ADMIN_TOKEN), (method, path, reply)
                validator(schema_of(operation, reply.status)).validate(reply.json)
        assert (await made.request("GET", f"{API}/openapi.json", token=ADMIN_TOKEN)).json == DESCRIBED
    log.close()


async def test_every_route_that_changes_something_is_audited() -> None:
    """One admin.action each, with what was done; refused ones too. The token that is revoked is not in it."""
    assert set(CHANGES) == {(method, path) for method, path, _ in operations() if method != "get"}
    async with bench() as made:
        await known(made)
        audit = made.actors["audit"]
        for (method, path), body in CHANGES.items():
            audit.events.clear()
            await made.request(method.upper(), re.sub(r"\{[a-z]+\}", "x", path), token=ADMIN_TOKEN, body=body)
            while not audit.events:
                await trio.lowlevel.checkpoint()
            assert [one.event for one in audit.events] == ["admin.action"], path
            (recorded,) = audit.events
            assert recorded.detail["action"], path
            assert f"`{recorded.detail['action']}`" in DESCRIBED["paths"][path][method]["description"]
            assert "s3cret" not in repr(recorded)


# --- live


async def test_the_overview_has_all_that_a_live_view_shows(tmp_path: Path) -> None:
    """Tree with mailboxes, connections, rates, limiter, breakers, blocks, and the audit log's end."""
    log = log_in(tmp_path)
    log.write(Entry([event(peer_ip="192.0.2.1", reason="unknown token")]))
    async with bench(settings_with(tmp_path)) as made:
        await known(made)
        shown = (await made.request("GET", f"{API}/overview", token=ADMIN_TOKEN)).json
    log.close()
    assert shown["tree"]["workers"][0]["actors"][0]["mailbox"] == {"queued": 4, "received": 900, "refused": 0}
    assert shown["connections"]["rows"] == [ROW]
    assert shown["health"]["upstreams"]["time"]["breaker"] == "open"
    assert shown["breaker"]["circuits"] == {"time": 1}
    assert shown["limiter"]["max_requests"] == SETTINGS.rate_limit_max_requests
    assert shown["limiter"]["keys"] == 3
    assert shown["blocks"]["blocks"][0]["ip"] == "192.0.2.9"
    assert shown["refused"]["invalid"] == 2
    assert shown["events"]["events"][-1]["reason"] == "unknown token"
    assert "hash" not in json.dumps(shown)


async def test_the_overview_answers_while_policy_actors_are_down(tmp_path: Path) -> None:
    """It says what it can't tell, and why; the events that led there are still to be seen."""
    log = log_in(tmp_path)
    log.write(Entry([event("actor.crashed")]))
    log.close()
    async with bench(settings_with(tmp_path), down=("limiter", "audit", "breaker", "auth")) as made:
        reply = await made.request("GET", f"{API}/overview", token=ADMIN_TOKEN)
    assert reply.status == 200
    assert reply.json["tree"] is None
    assert reply.json["blocks"] == {"blocks": [], "total": 0, "trouble": "the limiter does not answer"}
    assert reply.json["limiter"]["answering"] is False
    assert [one["event"] for one in reply.json["events"]["events"]] == ["audit.anchor", "actor.crashed"]


@pytest.mark.parametrize(
    "query", ["after=x", "limit=0", "limit=201", "after=-1", "who=1", "after", "%ff=1", "after=1e3"]
)
async def test_a_query_that_means_nothing_is_refused(query: str) -> None:
    """400, and not the wrong records."""
    async with bench() as made:
        assert (await made.request("GET", f"{API}/events?{query}", token=ADMIN_TOKEN)).status == 400


async def test_events_without_an_audit_log_say_so(tmp_path: Path) -> None:
    """Switched off, or not to be read: an answer with the reason, and no error."""
    async with bench(settings_with(tmp_path, security_audit_log=False)) as made:
        off = (await made.request("GET", f"{API}/events", token=ADMIN_TOKEN)).json
        assert (off["events"], "SECURITY_AUDIT_LOG" in off["trouble"]) == ([], True)
    async with bench(settings_with(tmp_path / "none")) as made:
        missing = (await made.request("GET", f"{API}/events", token=ADMIN_TOKEN)).json
        assert missing["trouble"] == "the audit log can't be read: No such file or directory"


# --- the log's end


@pytest.fixture
def recent(tmp_path: Path) -> Iterator[Recent]:
    with contextlib.closing(Recent(tmp_path)) as made:
        yield made


async def test_new_records_are_seen_over_rotations(tmp_path: Path, recent: Recent) -> None:
    """Each once and in order, whether the file was rotated by the gateway, moved by logrotate, or neither."""
    log = log_in(tmp_path, max_bytes=2500)
    told: list[int] = []
    for number in range(40):
        log.write(Entry([event(reason=str(number))]))
        if number == 20:
            (tmp_path / ACTIVE).rename(tmp_path / "security-old.log.1")
            log.settle_file()
        await recent.look()
        new = recent.after(told[-1] if told else 0, 100)
        told += [one["seq"] for one in new]
    log.close()
    assert told == list(range(1, recent.last + 1))
    reasons = [one["reason"] for one in recent.records if one["event"] == "auth.failed"]
    assert reasons == [str(number) for number in range(40)]
    assert not recent.trouble


async def test_what_was_rotated_just_before_is_seen_too(tmp_path: Path, recent: Recent) -> None:
    """Who looks for the first time right after a rotation sees more than the new file's anchor."""
    log = log_in(tmp_path, max_bytes=2500)
    while log.counters.rotations < 1:
        log.write(Entry([event(reason="before")]))
    log.close()
    await recent.look()
    assert [one["seq"] for one in recent.records] == list(range(1, recent.last + 1))
    assert recent.records[1]["reason"] == "before"


async def test_a_flood_of_calls_hides_nothing(tmp_path: Path, recent: Recent) -> None:
    """Calls are kept apart, both are bounded, and together they are in order."""
    log = log_in(tmp_path)
    log.write(Entry([event(reason="first")]))
    log.write(Entry([event("call.completed", detail={"tool": "x"}) for _ in range(CALLS_KEPT + 50)]))
    await recent.look()
    assert [one["event"] for one in recent.after(0, 10)] == ["audit.anchor", "auth.failed"]
    both = recent.after(0, 10, calls=True)
    assert [one["event"] for one in both] == ["call.completed"] * 10
    assert len(recent.calls) == CALLS_KEPT
    log.write(Entry([event() for _ in range(KEPT + 50)]))
    await recent.look()
    assert len(recent.records) == KEPT
    log.close()


async def test_what_is_no_record_is_not_shown(tmp_path: Path, recent: Recent) -> None:
    """Half a line waits for its rest; a stranger's line, an endless one and an emptied file do no harm."""
    log = log_in(tmp_path)
    log.write(Entry([event()]))
    log.close()
    path = tmp_path / ACTIVE
    line = path.read_bytes().splitlines(keepends=True)[1]
    with path.open("ab") as file:
        file.write(b"SECURITY {\n<script>\n" + b"x" * (3 << 20) + b"\n" + line.replace(b'"seq":2', b'"seq":3')[:-20])
    await recent.look()
    await recent.look()
    assert [one["seq"] for one in recent.records] in ([1, 2], [])  # the endless line was too long to look behind
    with path.open("ab") as file:
        file.write(line[-20:])
    await recent.look()
    assert recent.last == 3
    path.write_bytes(line.replace(b'"seq":2', b'"seq":4'))
    await recent.look()
    assert recent.last == 4


async def test_a_link_or_a_pipe_in_its_place_is_not_followed(tmp_path: Path, recent: Recent) -> None:
    """Who can write the log directory can't have admin read or wait for something else."""
    (tmp_path / "other").write_text("secret")
    (tmp_path / ACTIVE).symlink_to(tmp_path / "other")
    await recent.look()
    assert "can't be read" in recent.trouble
    (tmp_path / ACTIVE).unlink()
    os.mkfifo(tmp_path / ACTIVE)
    await recent.look()
    assert recent.trouble == "the audit log can't be read: it is no regular file"
    assert not recent.records


# --- rates


def view(name: str, **totals: int) -> View:
    return View(name, "acceptor", up=True, answering=True, incarnation=1, data={"totals": totals}, age_s=0.0)


def test_rates_are_of_the_last_seconds_and_add_up_over_acceptors() -> None:
    """What passed before the first look is in none of them."""
    rates = Rates()
    for second in range(11):
        views = [view("a", messages_in=1000 + 10 * second, bytes_in=100), view("b", messages_in=5 * second)]
        rates.observe(views, second * 1_000_000_000)
    assert rates.present()["messages_in"] == 15.0
    assert rates.present()["bytes_in"] == 0.0
    assert [look["age_s"] for look in rates.history()] == [float(age) for age in range(9, -1, -1)]
    assert {look["messages_in"] for look in rates.history()} == {15.0}


def test_a_restarted_acceptor_shows_no_dip_and_no_peak() -> None:
    """Its counts begin at 0 again: that is what has passed since; a new acceptor's count too."""
    rates = Rates()
    rates.observe([view("a", messages_in=1_000_000)], 0)
    rates.observe([view("a", messages_in=7)], 1_000_000_000)
    assert rates.present()["messages_in"] == 7.0
    rates.observe([view("a", messages_in=7), view("b", messages_in=3)], 2_000_000_000)
    assert rates.history()[-1]["messages_in"] == 3.0


def test_looks_are_bounded_and_not_too_close() -> None:
    """Two minutes; a burst of looks is one."""
    rates = Rates()
    for number in range(1000):
        rates.observe([view("a", messages_in=number)], number * 250_000_000)
    assert len(rates.history()) == HISTORY
    assert rates.history()[0]["age_s"] == 59.5


def test_totals_that_are_nonsense_count_for_nothing() -> None:
    """An acceptor's description is not trusted to be numbers."""
    rates = Rates()
    strange = View("a", "acceptor", up=True, answering=True, incarnation=1, data={"totals": {"messages_in": "x"}},
                   age_s=0.0)  # fmt: skip
    for number in range(3):
        rates.observe([strange, View("b", "acceptor", True, True, 1, {}, 0.0)], number * 1_000_000_000)
    assert set(rates.present().values()) == {0.0}


# --- the page's files


async def test_the_page_is_served_under_its_policy() -> None:
    """/ leads to it; each file has its type, and one policy that names no other origin and nothing inline."""
    async with bench() as made:
        root = await made.request("GET", "/")
        assert (root.status, root.headers["location"]) == (303, "/dashboard")
        for path, (name, kind) in FILES.items():
            reply = await made.request("GET", path)
            assert reply.status == 200
            assert reply.body == (PAGE / name).read_bytes()
            assert reply.headers["content-type"] == kind
            assert reply.headers["content-security-policy"] == POLICY
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["x-frame-options"] == "DENY"
            assert reply.headers["cache-control"] == "no-store"
            assert (await made.request("GET", path, host="evil.example")).status == 403
            assert (await made.request("POST", path)).status == 405
    assert POLICY.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|https?:|\*|data:|blob:", POLICY)
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in POLICY


async def test_the_policy_of_the_page_is_the_only_one() -> None:
    """Two policies would both hold, and the general one lets no page load anything; it stays on everything else."""
    async with bench() as made:
        stream = await made.open()
        await stream.send_all(b"GET /dashboard HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := await stream.receive_some():
            answer += data
        assert answer.lower().count(b"\r\ncontent-security-policy:") == 1
        livez = await made.request("GET", "/livez")
        assert livez.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_beyond_loopback_the_page_is_off_with_the_api() -> None:
    """Where the token could be read on the wire, nobody is asked to type it in; the switch is the API's."""
    for allowed in (False, True):
        settings = msgspec.structs.replace(SETTINGS, admin_without_tls=allowed)
        async with bench(settings, host="0.0.0.0") as made:
            for path in ("/", *FILES):
                assert ((await made.request("GET", path)).status == 403) != allowed, path


def test_the_page_holds_no_markup_of_others_and_nothing_from_outside() -> None:
    """No inline script or style, no other origin, nothing that turns text into markup, no token in an address."""
    page = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|//", page.replace("<!doctype", ""))
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {*FILES, "#main"} - {"/dashboard"}
    script = (PAGE / "app.js").read_text().replace("http://www.w3.org/2000/svg", "")  # a namespace, not an address
    assert not re.search(r"(inner|outer|insertAdjacent)HTML|document\.write|eval\(|Function\(|https?:", script)
    assert not re.search(r"localStorage|\bcookie\b", script)
    assert not re.search(r"url\(|@import|https?:", (PAGE / "style.css").read_text())
    # A field that has no name is not sent by a form, whatever goes wrong with the script.
    assert not re.search(r"<(?:input|select|button|form)[^>]*\s(?:name|action)=", page)


def test_every_file_of_the_page_is_installed_with_the_package() -> None:
    """They are declared as the package's data, so that an installation from a wheel has them."""
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"actors.admin" = ["openapi.json", "page/*"]' in declared
    assert {path.name for path in PAGE.iterdir()} == {name for name, _ in FILES.values()}


def test_routes_know_the_page() -> None:
    """The table serves exactly the files that there are."""
    assert {route.path for route in routes() if route.guard == "page"} == {"/", *FILES}
    assert {route.make for route in routes() if route.guard == "open"} == {Routes.livez, Routes.readyz, Routes.health}
