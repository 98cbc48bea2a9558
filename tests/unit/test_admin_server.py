"""The admin actor over real sockets, with actors around it that answer, are silent, or are down."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import h11
import msgspec
import pytest
import trio
from admin_bench import ADMIN_TOKEN, SETTINGS, Bench, bench, read

from actors.admin import connection as wire
from actors.admin import server
from actors.admin.answers import Answer, document
from ipc.context import Listener
from ipc.messages import (
    AdminRequest,
    Describe,
    Description,
    Disconnect,
    Done,
    GatewayStatus,
    ListenersChanged,
    ResetBreaker,
    TreeSnapshot,
)

ROW = {"id": "c1", "transport": "ws", "peer": "127.0.0.1:5", "principal": "", "worker": "edge.0", "upstream": "time"}


def bridge(state: str = "up") -> dict[str, Any]:
    instances = [{"key": "a", "state": state, "pid": 7, "sessions": 2, "in_flight": 1, "restarts": 4}]
    return {"upstreams": {"time": {"state": state, "in_flight": 1, "instances": instances}}}


async def settled(made: Bench) -> None:
    """Admin has asked everybody once and knows a tree."""
    made.tree()
    await made.actors["acceptor.0"].status(lambda status: status.ready)


async def test_livez_answers_while_every_other_actor_is_down() -> None:
    """Liveness and health depend on nobody else."""
    async with bench(down=("acceptor.0", "acceptor.1", "auth", "limiter", "breaker", "audit", "bridge", "validator",
                           "supervisor")) as made:
        assert (await made.request("GET", "/livez")).json == {"status": "alive"}
        health = await made.request("GET", "/health")
        assert health.status == 503
        assert health.json["status"] == "unhealthy"
        assert "no acceptor is up" in health.json["reasons"]
        assert (await made.request("GET", "/metrics")).status == 200


async def test_health_tells_all_that_the_contract_names() -> None:
    """The document has status, uptime, version, connections, actors, upstreams and restarts."""
    async with bench() as made:
        made.actors["acceptor.0"].data = {"connections": [ROW]}
        made.actors["bridge"].data = bridge()
        made.actors["breaker"].data = {"circuits": {"time": {"state": "closed", "retry_at_ns": 0}}}
        made.actors["acceptor.1"].data = {"upstreams": {"far": {"state": "idle", "instances": []}}}
        await settled(made)
        while (reply := await made.request("GET", "/health")).json["connections"]["total"] == 0:
            await trio.lowlevel.checkpoint()
    assert reply.status == 200
    document = reply.json
    assert document["status"] == "healthy", document["reasons"]
    assert (document["uptime"], document["version"], document["restarts"]) == (5.0, "0.1.0", 3)
    assert document["connections"] == {"total": 1, "ws": 1, "tcp": 0}
    assert document["upstreams"]["time"]["state"] == "up"
    assert document["upstreams"]["time"]["breaker"] == "closed"
    assert document["upstreams"]["far"]["state"] == "idle"
    assert document["actors"]["limiter"] == {"state": "up", "answering": True, "incarnation": 1, "restarts": 0}
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"


async def test_a_policy_actor_that_is_down_makes_it_unhealthy_and_unready_until_it_is_back() -> None:
    """Without auth nobody is let in, and the acceptors are told so at once, and of the recovery too."""
    async with bench() as made:
        await settled(made)
        await made.stop("auth")
        status = await made.actors["acceptor.0"].status(lambda status: status.healthy == "unhealthy")
        assert not status.ready
        assert msgspec.json.decode(status.body)["reasons"] == ["auth is down"]
        ready = await made.request("GET", "/readyz")
        assert (ready.status, ready.json["reasons"]) == (503, ["auth is down"])
        made.actors["acceptor.0"].received.clear()
        await made.start("auth")
        assert (await made.actors["acceptor.0"].status(lambda status: status.healthy == "healthy")).ready


async def test_a_missing_bridge_only_degrades_but_its_default_server_is_not_ready() -> None:
    """A 200 from /health with status degraded, a 503 from /readyz."""
    async with bench(down=("bridge",)) as made:
        made.tree()
        await made.actors["acceptor.0"].status(lambda status: "starting" not in status.body.decode())
        health = await made.request("GET", "/health")
        assert (health.status, health.json["status"]) == (200, "degraded")
        assert (await made.request("GET", "/readyz")).status == 503


async def test_an_open_breaker_of_the_default_server_ends_readiness() -> None:
    """With its name, the breaker's state and the time until the next probe."""
    async with bench() as made:
        made.actors["bridge"].data = bridge()
        made.actors["breaker"].data = {"circuits": {"time": {"state": "open", "retry_at_ns": 2**62}}}
        made.tree()
        await made.actors["acceptor.0"].status(lambda status: "breaker open" in status.body.decode())
        reply = await made.request("GET", "/readyz")
        assert (reply.status, reply.json["reasons"]) == (503, ["server time: breaker open"])
        assert (await made.request("GET", "/health")).json["upstreams"]["time"]["retry_in_ms"] > 0


async def test_draining_ends_readiness_first() -> None:
    """As soon as the supervisor says so, while everything else is still up."""
    async with bench() as made:
        await settled(made)
        made.tree(draining=True)
        await made.actors["acceptor.1"].status(lambda status: not status.ready and "draining" in status.body.decode())
        assert (await made.request("GET", "/readyz")).json["reasons"] == ["the gateway is draining"]


async def test_a_silent_actor_is_shown_as_not_answering_and_keeps_its_last_figures() -> None:
    """Whoever hangs delays an answer by no more than the survey's patience, and loses no figure."""
    async with bench() as made:
        made.actors["acceptor.0"].data = {"connections": [ROW]}
        await settled(made)
        first = await made.request("GET", "/admin/v1/connections", token=ADMIN_TOKEN)
        assert first.json == {"connections": [ROW], "missing": []}
        made.actors["acceptor.0"].deaf = True
        second = await made.request("GET", "/admin/v1/connections", token=ADMIN_TOKEN)
        assert second.json == {"connections": [], "missing": ["acceptor.0"]}
        health = (await made.request("GET", "/health")).json
        assert health["connections"]["total"] == 1
        assert "acceptor.0 does not answer" in health["reasons"]


async def test_garbage_from_an_actor_is_counted_and_hurts_nothing() -> None:
    """Neither a description nor a tree that can't be read ends admin."""
    async with bench() as made:
        made.actors["limiter"].data = {"leases": 7}
        await settled(made)
        await made.request("GET", "/admin/v1/connections", token=ADMIN_TOKEN)  # asks everybody
        made.actors["limiter"].data = b"["
        made.admin.control(TreeSnapshot(b"{]"))
        assert (await made.request("GET", "/admin/v1/connections", token=ADMIN_TOKEN)).status == 200
        text = (await made.request("GET", "/metrics")).body.decode()
        assert "portcullis_limiter_leases_total 7.0" in text
        assert 'portcullis_admin_total{what="malformed_trees"} 1.0' in text


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/admin/v1/connections"),
        ("GET", "/admin/v1/actors"),
        ("GET", "/admin/v1/breakers"),
        ("POST", "/admin/v1/breakers/time/reset"),
        ("POST", "/admin/v1/connections/c1/disconnect"),
        ("POST", "/admin/v1/drain"),
        ("GET", "/admin/v1/nothing"),
    ],
)
async def test_the_admin_api_wants_its_token(method: str, target: str) -> None:
    """No token, a wrong one and another scheme get 401 with a challenge, and nobody is asked for anything."""
    async with bench() as made:
        for headers in ((), (("Authorization", "Bearer wrong"),), (("Authorization", f"Basic {ADMIN_TOKEN}"),)):
            reply = await made.request(method, target, headers=headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer ")
            assert reply.headers["content-type"] == "application/problem+json"
        doubled = await made.request(method, target, token=ADMIN_TOKEN, headers=(("Authorization", "Bearer x"),))
        assert doubled.status == 400
        for actor in made.actors.values():
            assert not any(isinstance(m, Disconnect | ResetBreaker | AdminRequest) for m in actor.received)


async def test_without_a_configured_token_the_admin_api_is_closed() -> None:
    """An empty token is no token."""
    async with bench(msgspec.structs.replace(SETTINGS, admin_token="")) as made:
        empty = (("Authorization", "Bearer"),)
        assert (await made.request("GET", "/admin/v1/actors", headers=empty)).status == 401
        assert (await made.request("GET", "/admin/v1/actors")).status == 401


async def test_wrong_tokens_are_audited_without_the_token() -> None:
    """As a failed authentication on the admin transport."""
    async with bench() as made:
        await made.request("GET", "/admin/v1/actors", token="guessed-token")
        audit = made.actors["audit"]
        while not audit.events:
            await audit.came.wait()
        event = audit.events[0]
        assert (event.event, event.transport, event.peer_ip) == ("auth.failed", "admin", "127.0.0.1")
        assert "guessed" not in repr(event)


async def test_disconnect_asks_every_acceptor_and_tells_who_was_meant() -> None:
    """200 if one of them had it, 404 if all answered and none had, 503 if one that may have it is silent."""
    async with bench() as made:
        made.actors["acceptor.0"].answer = lambda _m: Done(ok=False)
        made.actors["acceptor.1"].answer = lambda m: Done(ok=isinstance(m, Disconnect) and m.connection == "0-1")
        good = await made.request("POST", "/admin/v1/connections/0-1/disconnect", token=ADMIN_TOKEN)
        assert (good.status, good.json["ok"]) == (200, True)
        assert (await made.request("POST", "/admin/v1/connections/0-2/disconnect", token=ADMIN_TOKEN)).status == 404
        made.actors["acceptor.1"].deaf = True
        assert (await made.request("POST", "/admin/v1/connections/0-2/disconnect", token=ADMIN_TOKEN)).status == 503
        actions = [event for event in made.actors["audit"].events if event.event == "admin.action"]
        assert actions[0].detail == {"action": "connection.disconnect", "target": "0-1"}


async def test_breakers_are_listed_and_reset() -> None:
    """By name, which may be percent-encoded; an unknown one is 404."""
    async with bench() as made:
        made.actors["breaker"].data = {"circuits": {"time": {"state": "half_open"}}}
        made.actors["breaker"].answer = lambda m: Done(ok=isinstance(m, ResetBreaker) and m.upstream == "time")
        listed = await made.request("GET", "/admin/v1/breakers", token=ADMIN_TOKEN)
        assert listed.json["breakers"]["time"] == {"state": "half_open", "retry_in_ms": 0}
        assert (await made.request("POST", "/admin/v1/breakers/time/reset", token=ADMIN_TOKEN)).status == 200
        assert (await made.request("POST", "/admin/v1/breakers/none/reset", token=ADMIN_TOKEN)).status == 404
        assert (await made.request("POST", "/admin/v1/breakers/t%69me/reset", token=ADMIN_TOKEN)).status == 200


async def test_drain_is_the_supervisors_to_do() -> None:
    """It is asked, and its answer is told; a supervisor that is silent is a 503."""
    async with bench() as made:
        made.actors["supervisor"].answer = lambda m: Done(ok=m == AdminRequest("drain"), detail="draining")
        reply = await made.request("POST", "/admin/v1/drain", token=ADMIN_TOKEN)
        assert (reply.status, reply.json) == (202, {"ok": True, "detail": "draining"})
        await made.stop("supervisor")
        assert (await made.request("POST", "/admin/v1/drain", token=ADMIN_TOKEN)).status == 503


async def test_actors_is_the_supervisors_tree() -> None:
    """503 before it has told one."""
    async with bench() as made:
        assert (await made.request("GET", "/admin/v1/actors", token=ADMIN_TOKEN)).status == 503
        mailbox = {"queued": 1, "received": 2, "refused": 3}
        actor = {"name": "auth", "state": "up", "incarnation": 2, "restarts": 1, "mailbox": mailbox}
        worker = {"name": "policy", "role": "policy", "pid": 9, "state": "up", "incarnation": 1, "restarts": 0,
                  "rss_kb": 100, "actors": [actor]}
        made.tree(workers=[worker], something_new=1)
        await settled_tree(made)
        document = (await made.request("GET", "/admin/v1/actors", token=ADMIN_TOKEN)).json
        assert document["workers"] == [worker]
        assert document["restarts"] == 3
        text = (await made.request("GET", "/metrics")).body.decode()
        assert 'portcullis_worker_resident_memory_bytes{role="policy",worker="policy"} 102400.0' in text
        assert 'portcullis_actor_restarts_total{actor="auth"} 1.0' in text


async def settled_tree(made: Bench) -> None:
    await made.actors["acceptor.0"].status(lambda status: b'"version":"0.1.0"' in status.body)


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("POST", "/livez", 405, "GET, HEAD"),
        ("DELETE", "/health", 405, "GET, HEAD"),
        ("GET", "/none", 404, None),
        ("GET", "/health/", 404, None),
        ("GET", "/../etc/passwd", 404, None),
    ],
)
async def test_what_is_not_served_is_refused(method: str, target: str, status: int, allow: str | None) -> None:
    """404 for other paths, 405 with Allow for other methods, as RFC 9457 problems."""
    async with bench() as made:
        reply = await made.request(method, target)
        assert (reply.status, reply.headers.get("allow")) == (status, allow)
        assert reply.json["status"] == status


async def test_an_api_path_with_the_wrong_method_is_405_for_operators_only() -> None:
    """With the token one is told what is allowed."""
    async with bench() as made:
        reply = await made.request("GET", "/admin/v1/drain", token=ADMIN_TOKEN)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert (await made.request("GET", "/admin/v1/none", token=ADMIN_TOKEN)).status == 404


async def test_a_foreign_host_is_refused_on_loopback() -> None:
    """A browser page that bound its name to 127.0.0.1 gets nothing."""
    settings = msgspec.structs.replace(SETTINGS, allowed_hosts=("gateway.internal",))
    async with bench(settings) as made:
        assert (await made.request("GET", "/health", host="evil.example")).status == 403
        for host in ("localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST.", "gateway.internal:9501"):
            assert (await made.request("GET", "/livez", host=host)).status == 200, host
        doubled = await made.request("GET", "/livez", headers=(("X-Other", "1"),))
        assert doubled.status == 200


async def test_beyond_loopback_details_and_metrics_want_the_token_and_the_api_is_off() -> None:
    """One word is open; the API works only with the explicit switch."""
    async with bench(host="0.0.0.0") as made:
        assert (await made.request("GET", "/health", host="any.example")).json.keys() == {"status"}
        assert (await made.request("GET", "/readyz")).json.keys() == {"ready"}
        assert "actors" in (await made.request("GET", "/health", token=ADMIN_TOKEN)).json
        assert (await made.request("GET", "/health", token="wrong")).status == 401
        assert (await made.request("GET", "/metrics")).status == 401
        assert (await made.request("GET", "/metrics", token=ADMIN_TOKEN)).status == 200
        made.tree()
        await settled_tree(made)
        assert (await made.request("GET", "/admin/v1/actors", token=ADMIN_TOKEN)).status == 403
    async with bench(msgspec.structs.replace(SETTINGS, admin_without_tls=True), host="0.0.0.0") as made:
        made.tree()
        await settled_tree(made)
        assert (await made.request("GET", "/admin/v1/actors", token=ADMIN_TOKEN)).status == 200
        assert (await made.request("GET", "/admin/v1/actors")).status == 401


async def test_metrics_can_be_moved_and_switched_off() -> None:
    """METRICS_PATH and METRICS_ENABLED."""
    async with bench(msgspec.structs.replace(SETTINGS, metrics_path="/m/x")) as made:
        assert (await made.request("GET", "/m/x")).status == 200
        assert (await made.request("GET", "/metrics")).status == 404
    async with bench(msgspec.structs.replace(SETTINGS, metrics_enabled=False)) as made:
        assert (await made.request("GET", "/metrics")).status == 404


# --- hostile and slow clients


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000,
    ],
)
async def test_malformed_requests_get_an_error_and_hurt_nobody(garbage: bytes) -> None:
    """A 4xx problem on that connection; the next one works."""
    async with bench() as made:
        stream = await made.open()
        await stream.send_all(garbage)
        reply = await read(stream, after_request())
        assert 400 <= reply.status < 500
        assert (await made.request("GET", "/livez")).status == 200


def after_request() -> h11.Connection:
    protocol = h11.Connection(h11.CLIENT)
    protocol.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    protocol.send(h11.EndOfMessage())
    return protocol


async def test_a_body_past_its_limit_is_refused_and_a_small_one_is_read() -> None:
    """413, and a keep-alive connection serves the next request after a body."""
    async with bench() as made:
        too_long = await made.request("POST", "/admin/v1/drain", token=ADMIN_TOKEN, body=b"x" * (wire.BODY_LIMIT + 1))
        assert too_long.status == 413
        stream = await made.open()
        assert (await made.request("POST", "/livez", body=b"{}", stream=stream)).status == 405
        assert (await made.request("GET", "/livez", stream=stream)).status == 200
        await stream.aclose()


async def test_a_reset_in_the_middle_of_a_request_is_survived() -> None:
    """A connection's end is its own."""
    async with bench() as made:
        for part in (b"", b"GET /livez HT", b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab"):
            stream = await made.open()
            await stream.send_all(part or b"G")
            stream.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER 0: close resets
            await stream.aclose()
        assert (await made.request("GET", "/livez")).status == 200


async def test_silent_connections_give_way_to_new_ones() -> None:
    """However many sit there without a request, a new one is served."""
    async with bench() as made:
        silent = [await made.open() for _ in range(server.MOST_CONNECTIONS + 8)]
        assert (await made.request("GET", "/livez")).status == 200
        assert await silent[0].receive_some(1) == b""
        text = (await made.request("GET", "/metrics")).body.decode()
        assert 'portcullis_admin_total{what="evicted"}' in text
        for stream in silent:
            await trio.aclose_forcefully(stream)


async def test_a_slow_request_is_ended_as_a_whole(autojump_clock: trio.testing.MockClock) -> None:
    """A byte now and then does not keep a request open for ever."""
    left, right = trio.testing.memory_stream_pair()

    async def nobody(_request: wire.Request) -> Any:
        raise AssertionError("no request is complete")

    async def drip() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000:
                await left.send_all(bytes([byte]))
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        begun = trio.current_time()
        await wire.Connection(right, nobody, ()).serve()
        assert trio.current_time() - begun <= wire.REQUEST_S + 1


async def test_a_fault_in_one_request_is_a_500_and_no_more() -> None:
    """The boundary answers and counts it, tells the client nothing of it, and the same connection goes on."""
    left, right = trio.testing.memory_stream_pair()
    faulty = True

    async def handler(_request: wire.Request) -> Answer:
        await trio.lowlevel.checkpoint()
        if faulty:
            raise ZeroDivisionError("secret detail")
        return document({"fine": True})

    connection = wire.Connection(right, handler, ())
    protocol = h11.Connection(h11.CLIENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        for wanted in (500, 200):
            request = h11.Request(method="GET", target="/", headers=[("Host", "x")])
            await left.send_all((protocol.send(request) or b"") + (protocol.send(h11.EndOfMessage()) or b""))
            reply = await read(left, protocol)
            assert reply.status == wanted
            assert b"secret" not in reply.body
            protocol.start_next_cycle()
            faulty = False
        await left.aclose()
    assert connection.faults == 1


async def test_listeners_are_followed() -> None:
    """A listener that was taken away is served no longer, one that was given is."""
    async with bench() as made:
        extra = socket.create_server(("127.0.0.1", 0))
        extra.setblocking(False)
        made.context.listeners.append(Listener("health", extra))
        made.admin.control(ListenersChanged())
        stream = await trio.open_tcp_stream("127.0.0.1", extra.getsockname()[1])
        assert (await made.request("GET", "/livez", stream=stream)).status == 200
        await stream.aclose()
        made.context.listeners.pop()
        made.admin.control(ListenersChanged())
        answer = await made.admin.ask(Describe(), 2**62)
        assert isinstance(answer, Description)
        await trio.testing.wait_all_tasks_blocked()
        late = await trio.open_tcp_stream("127.0.0.1", extra.getsockname()[1])
        await late.send_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        extra.setblocking(False)
        accepted, _ = extra.accept()  # still in the queue: admin left it alone
        accepted.close()
        extra.close()


async def test_every_acceptor_is_told_and_a_new_incarnation_at_once() -> None:
    """The client port's /health never waits for a second round."""
    async with bench() as made:
        for name in ("acceptor.0", "acceptor.1"):
            await made.actors[name].status(lambda _status: True)
        await made.stop("acceptor.1")
        made.actors["acceptor.1"].received.clear()
        await made.start("acceptor.1")
        told = await made.actors["acceptor.1"].status(lambda _status: True)
        assert isinstance(told, GatewayStatus)
        assert json.loads(told.body)["actors"]["acceptor.1"]["incarnation"] == 2
