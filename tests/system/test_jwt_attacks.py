"""Every forged token, and every right one, at the gateway's doors: TCP ``authenticate`` and WebSocket Authorization."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jwt_attacks
import jwt_forge as forge
import pytest
import trio
from jwt_attacks import EC_KID, ED_KID, RSA_KID
from jwt_forge import PREVIOUS, SECRET, ec_key, ed_key, jwk, key_set, rsa_key
from key_server import KeyServer, key_server, says
from test_crashes import incarnations, kill, tree
from wire_clients import TcpClient, tcp_client

# What protects against so many failures from one address is tested elsewhere; here it would hide what is looked at.
PATIENT = {
    "AUTO_BLOCK_ENABLED": "false",
    "MAX_FAILED_ATTEMPTS": "100000",
    "CONNECTION_RATE_LIMIT": "1000000",
    "RATE_LIMIT_MAX_REQUESTS": "1000000",
    "RATE_LIMIT_BURST_REQUESTS": "1000000",
    "WORKERS": "1",
}
OWN = {"JWT_SECRET": SECRET, "JWT_SECRET_PREVIOUS": PREVIOUS}
RIGHT = {
    "HS256, the secret": lambda: forge.own(),
    "HS256, the previous secret": lambda: forge.own(PREVIOUS),
    "RS256": lambda: forge.outside(rsa_key("served"), RSA_KID),
    "ES256": lambda: forge.outside(ec_key("served"), EC_KID),
    "EdDSA": lambda: forge.outside(ed_key("served"), ED_KID),
}
UNAVAILABLE = 503


def outside(server: KeyServer) -> dict[str, str]:
    return {
        "JWT_JWKS_URL": server.url,
        "JWT_JWKS_ISSUER": forge.ISSUER,
        "JWT_JWKS_AUDIENCE": forge.AUDIENCE,
    }


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server(jwt_attacks.served_keys()) as running:
        yield running


async def started(start_gateway: Any, **environment: str) -> Any:
    return await trio.to_thread.run_sync(lambda: start_gateway(environment=PATIENT | environment))


async def authenticate(client: TcpClient, token: str) -> dict[str, Any]:
    return await client.call("authenticate", {"token": token})


async def tcp_answer(gateway: Any, token: str) -> dict[str, Any]:
    """What a new connection gets."""
    async with await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port) as stream:
        return await authenticate(TcpClient(stream), token)


async def ws_status(gateway: Any, token: str) -> int:
    """The HTTP status of an upgrade with this bearer token, sent as it is."""
    head = (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{gateway.ws_port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    with trio.fail_after(30):
        async with await trio.open_tcp_stream("127.0.0.1", gateway.ws_port) as stream:
            await stream.send_all(head.encode())
            answer = b""
            while b"\r\n" not in answer:
                data = await stream.receive_some(4096)
                assert data, "closed without an answer"
                answer += data
    return int(answer.split(b" ", 2)[1])


async def code(gateway: Any, token: str) -> int:
    """0 for who is let in, else the error's code, on TCP; WebSocket must say the same."""
    answer = await tcp_answer(gateway, token)
    number = answer["error"]["code"] if "error" in answer else 0
    assert await ws_status(gateway, token) == (number or 101)
    return number


def audit_lines(gateway: Any) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in gateway.audit_dir.glob("security-*.log*")]
    return [json.loads(line.removeprefix("SECURITY ")) for text in texts for line in text.splitlines()]


async def test_every_forgery_is_refused_at_both_doors(start_gateway: Any, server: KeyServer) -> None:
    """401 for each, on one connection and on many; auth does not crash over any of them; who is right gets in before
    and afterwards, by each kind of key; nothing of a token reaches the audit log or the gateway's own."""
    gateway = await started(start_gateway, **OWN, **outside(server))
    attacks = jwt_attacks.attacks()
    for make in RIGHT.values():
        assert await code(gateway, make()) == 0
    before = incarnations(await trio.to_thread.run_sync(tree, gateway))["auth"]
    accepted: list[str] = []
    async with await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port) as stream:
        client = TcpClient(stream)
        for name, token in attacks.items():
            answer = await authenticate(client, token)
            if answer.get("error", {}).get("code") != 401:
                accepted.append(f"tcp: {name}: {answer}")
    statuses: Counter[int] = Counter()
    for name, token in attacks.items():
        if token != token.strip(" \t"):
            continue  # white space around a header's value is no part of it (RFC 9110 §5.5)
        status = await ws_status(gateway, token)
        statuses[status] += 1
        # What can't stand in a header at all is refused before anyone is asked (RFC 9110 §5.5).
        in_a_header = token.isascii() and token.isprintable() and len(token) <= 8192
        if status != 401 and (in_a_header or status != 400):
            accepted.append(f"ws: {name}: {status}")
    assert accepted == []
    assert statuses[401] > 400
    for make in RIGHT.values():
        assert await code(gateway, make()) == 0
    assert incarnations(await trio.to_thread.run_sync(tree, gateway))["auth"] == before
    await trio.to_thread.run_sync(gateway.stop)
    records = audit_lines(gateway)
    reasons = {record.get("reason") for record in records if record["event"] == "auth.failed"}
    assert {"token signature wrong", "token algorithm not allowed", "token expired", "token malformed"} <= reasons
    logged = json.dumps(records) + "".join(gateway.log)
    for token in attacks.values():
        signature = token.rpartition(".")[2]
        assert len(signature) < 40 or signature not in logged
    principals = {record.get("principal") for record in records if record["event"] == "auth.ok"}
    assert {"alice", f"{forge.ISSUER}|bob"} <= principals


async def test_what_a_token_says_reaches_its_holder(start_gateway: Any, server: KeyServer) -> None:
    """The principal, and the expiry with the leeway; a call works."""
    gateway = await started(start_gateway, **OWN, **outside(server))
    now = int(time.time())
    for token, principal in (
        (forge.own(exp=now + 500), "alice"),
        (forge.outside(rsa_key("served"), RSA_KID, exp=now + 500), f"{forge.ISSUER}|bob"),
    ):
        result = (await tcp_answer(gateway, token))["result"]
        assert result["authenticated"] is True
        assert result["principal"] == principal
        assert result["expiresAt"] == (now + 500) * 1000 + 5000
        async with tcp_client(gateway, token=token) as client:
            await client.initialize()
            answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": "x"}})
            assert answer["result"]["content"][0]["text"] == "x"


async def test_the_secret_is_rotated_without_an_end(start_gateway: Any) -> None:
    """A token of the old secret is good while that is the previous one, and no longer; static tokens stay."""
    old, new = forge.own(PREVIOUS), forge.own(SECRET)
    for environment, codes in (
        ({"JWT_SECRET": PREVIOUS}, (0, 401)),
        ({"JWT_SECRET": SECRET, "JWT_SECRET_PREVIOUS": PREVIOUS}, (0, 0)),
        ({"JWT_SECRET": SECRET}, (401, 0)),
        ({}, (401, 401)),
    ):
        gateway = await started(start_gateway, **environment)
        assert (await code(gateway, old), await code(gateway, new)) == codes
        assert await ws_status(gateway, gateway.ws_token) == 101
        await trio.to_thread.run_sync(gateway.stop)


async def test_what_the_command_issues_is_accepted(start_gateway: Any) -> None:
    """``mcp-token issue`` with the gateway's settings makes a token that the gateway takes; inspect has nothing
    against it."""
    environment = {"JWT_SECRET": SECRET, "JWT_ISSUER": "acme", "JWT_AUDIENCE": "gate", "JWT_ALGORITHMS": "HS256"}
    gateway = await started(start_gateway, **environment)
    for algorithm in ("HS256", "HS512"):
        command = [sys.executable, "-m", "ops.cli.token"]
        issued = await trio.run_process(
            [*command, "issue", "--subject", "carol", "--ttl", "5m"],
            env=environment | {"JWT_ALGORITHMS": algorithm},
            capture_stdout=True,
        )
        token = issued.stdout.decode().strip()
        inspected = await trio.run_process(
            [*command, "inspect", token], env=environment, check=False, capture_stdout=True
        )
        if algorithm == "HS256":
            assert (await tcp_answer(gateway, token))["result"]["principal"] == "carol"
            assert inspected.returncode == 0
        else:
            assert await code(gateway, token) == 401
            assert inspected.returncode == 1


async def test_new_keys_are_taken_at_their_first_use_and_read_once(start_gateway: Any, server: KeyServer) -> None:
    """Forty clients with tokens of a key that the gateway hasn't seen all get in, after one reading; a flood of keys
    that don't exist is refused, and causes next to none; a key that has gone is good for nothing."""
    gateway = await started(start_gateway, **outside(server))
    begun = time.monotonic()
    old, new = forge.outside(rsa_key("served"), RSA_KID), forge.outside(rsa_key("next"), "rsa-2")
    assert await code(gateway, old) == 0
    assert server.requests == 1
    server.serve(key_set(jwk(rsa_key("next"), "rsa-2")))
    codes: Counter[int] = Counter()

    async def one(token: str) -> None:
        answer = await tcp_answer(gateway, token)
        codes[answer.get("error", {}).get("code", 0)] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(one, new)
    assert codes == {0: 40}
    assert server.requests == 2
    codes.clear()
    async with trio.open_nursery() as nursery:
        for number in range(45):
            nursery.start_soon(one, forge.outside(rsa_key("attacker"), f"kid-{number}"))
    assert codes == {401: 45}
    assert server.requests <= 3 + (time.monotonic() - begun) // 15
    assert await code(gateway, old) == 401
    assert await code(gateway, new) == 0


async def test_an_issuer_that_is_down_takes_nobody_along(start_gateway: Any, server: KeyServer) -> None:
    """The last good keys stay; a token of a key that can't be looked up is refused as unavailable, and isn't held
    against anybody; own and static tokens never notice."""
    gateway = await started(start_gateway, **OWN, **outside(server))
    known, unknown = forge.outside(rsa_key("served"), RSA_KID), forge.outside(rsa_key("next"), "rsa-2")
    assert await code(gateway, known) == 0
    server.stop_listening()
    assert await code(gateway, unknown) == UNAVAILABLE
    assert await code(gateway, forge.outside(ec_key("served"), EC_KID)) == 0
    assert await code(gateway, forge.own()) == 0
    gateway.await_line("JWT_JWKS_URL: .*; the 3 keys of before stay")


@pytest.mark.parametrize(
    "answer",
    [
        says(b"", "302 Found", "Location: /elsewhere"),
        says(b"<html>it works</html>"),
        says(b'{"keys":[]}'),
        says(key_set({"kty": "oct", "k": "c2VjcmV0"})),
        says(b" " * 300_000),
    ],
    ids=["redirect", "garbage", "empty", "secret", "huge"],
)
async def test_without_usable_keys_nobody_gets_in_and_nothing_else_suffers(
    start_gateway: Any, server: KeyServer, answer: Any
) -> None:
    """The gateway starts and serves everybody else; the issuer's holders are told to come back, until it is mended."""
    good = server.answer
    server.answer = answer
    gateway = await started(start_gateway, **OWN, **outside(server))
    token = forge.outside(rsa_key("served"), RSA_KID)
    assert await code(gateway, token) == UNAVAILABLE
    assert await code(gateway, forge.own()) == 0
    assert await ws_status(gateway, gateway.ws_token) == 101
    gateway.await_line("JWT_JWKS_URL: .*no outside token can be verified")
    assert set(server.targets) == {"/keys"}
    server.answer = good
    with trio.fail_after(60):
        while "error" in await tcp_answer(gateway, token):
            await trio.sleep(0.2)
    assert await code(gateway, token) == 0


async def test_keys_in_a_file_are_followed(start_gateway: Any, tmp_path: Any) -> None:
    """A file that is replaced is read again; one that is broken changes nothing."""
    path = tmp_path / "keys.json"
    path.write_bytes(jwt_attacks.served_keys())
    gateway = await started(
        start_gateway,
        JWT_JWKS_FILE=str(path),
        JWT_JWKS_ISSUER=forge.ISSUER,
        JWT_JWKS_AUDIENCE=forge.AUDIENCE,
    )
    old, new = forge.outside(rsa_key("served"), RSA_KID), forge.outside(rsa_key("next"), "rsa-2")
    assert await code(gateway, old) == 0
    path.write_bytes(b"{")
    await trio.to_thread.run_sync(lambda: gateway.await_line("JWT_JWKS_FILE: .*; the 3 keys of before stay"))
    assert await code(gateway, old) == 0
    (tmp_path / "new").write_bytes(key_set(jwk(rsa_key("next"), "rsa-2")))
    (tmp_path / "new").replace(path)
    with trio.fail_after(60):
        while await code(gateway, new):
            await trio.sleep(0.2)
    assert await code(gateway, old) == 401


async def test_a_killed_policy_worker_believes_no_more_than_before(start_gateway: Any, server: KeyServer) -> None:
    """Its successor takes the right tokens and refuses the forged ones; keys are read anew."""
    gateway = await started(start_gateway, **OWN, **outside(server))
    right, wrong = forge.outside(rsa_key("served"), RSA_KID), forge.outside(rsa_key("attacker"), RSA_KID)
    assert await code(gateway, right) == 0
    await kill(gateway, "policy")
    for _ in range(3):
        answer = await tcp_answer(gateway, wrong)
        assert answer["error"]["code"] in (401, UNAVAILABLE)
    with trio.fail_after(60):
        while "result" not in await tcp_answer(gateway, right):
            await trio.sleep(0.05)
    assert await code(gateway, wrong) == 401
    assert server.requests == 2


async def test_a_wrong_configuration_is_refused_whole(start_gateway: Any) -> None:
    """Every mistake about tokens is named at once, and no secret is printed."""
    environment = {
        "JWT_SECRET": "short-s3cret-value",
        "JWT_ALGORITHMS": "none",
        "JWT_JWKS_URL": "http://issuer.example/keys?code=s3cret-value",
        "JWT_JWKS_ALGORITHMS": "HS256",
        "JWT_JWKS_ISSUER": "portcullis",
    }
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment, wait=False))
    assert await trio.to_thread.run_sync(gateway.process.wait) == 2
    gateway._end_reading()
    said = "".join([*gateway.log, *gateway.out])
    for name in ("JWT_SECRET", "JWT_ALGORITHMS", "JWT_JWKS_URL", "JWT_JWKS_ALGORITHMS"):
        assert re.search(rf"{name}\b", said), said
    assert "s3cret-value" not in said
