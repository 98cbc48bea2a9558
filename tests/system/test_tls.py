"""TLS on the client ports of the real gateway: who gets through, with what, and what is left of it when it breaks."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from tls_clients import TLS_CLIENTS, Authority, connect, start_tls, tls_tcp_client, tls_ws_client
from wire_clients import request

TRANSPORTS = ("ws", "tcp")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def echo(client: Any, text: str) -> None:
    answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": text}})
    assert answer["result"]["content"][0]["text"] == text


@pytest.mark.parametrize("rsa_bits", [0, 2048, 4096], ids=["ec", "rsa2048", "rsa4096"])
async def test_both_ports_speak_tls_with_every_kind_of_key(
    start_gateway: Any, authority: Authority, rsa_bits: int
) -> None:
    """TLS 1.2 and 1.3 carry WebSocket and lines, whatever the key; the protocol of HTTP is agreed to on its port."""
    gateway = await start_tls(start_gateway, authority.server(rsa_bits=rsa_bits))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = authority.client()
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        for transport in TRANSPORTS:
            async with TLS_CLIENTS[transport](gateway, context) as client:
                await client.initialize()
                await echo(client, f"{transport} {version}")
        async with await connect(gateway.ws_port, context) as stream:
            assert stream.selected_alpn_protocol() == "http/1.1"
            assert stream.version() == version.name.replace("_", ".")
        async with await connect(gateway.tcp_port, context) as stream:
            assert stream.selected_alpn_protocol() is None


def audited(gateway: Any) -> list[dict[str, Any]]:
    lines = "".join(path.read_text() for path in sorted(gateway.audit_dir.glob("security-*.log")))
    return [json.loads(line.removeprefix("SECURITY ")) for line in lines.splitlines()]


def refusals(gateway: Any) -> set[tuple[str, str]]:
    """Reason and rule of the connections that were refused."""
    return {(e["reason"], e.get("rule", "")) for e in audited(gateway) if e["event"] == "connection.refused"}


async def until(condition: Callable[[], bool], gateway: Any) -> None:
    with trio.move_on_after(30):
        while not condition():
            await trio.sleep(0.05)
        return
    raise AssertionError(f"it did not come to that\n{gateway.tail()}")


async def to_the_end(stream: Any) -> bytes:
    """Everything until the peer ends the connection, however it does."""
    data = b""
    with trio.fail_after(30):
        while True:
            try:
                more = await stream.receive_some(65536)
            except trio.BrokenResourceError:
                return data
            if not more:
                return data
            data += more


# --- who is not served


async def test_plaintext_on_a_tls_port_is_told_so_in_plaintext(start_gateway: Any, authority: Authority) -> None:
    """HTTP gets a 400 that says what to do, without HSTS (RFC 6797 §7.2); a line gets an error line. Bytes that are
    neither text nor TLS get an alert. All of them are audited."""
    gateway = await start_tls(start_gateway, authority.server())
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.ws_port)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await to_the_end(stream)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"https://" in answer
    assert b"strict-transport-security" not in answer.lower()
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)
    async with stream:
        await stream.send_all(request("ping", None, id=b"1") + b"\n")
        error = json.loads(await to_the_end(stream))
        assert error["id"] is None
        assert "TLS" in error["error"]["message"]
    for port in (gateway.ws_port, gateway.tcp_port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"\x80\x2e\x01\x03\x01" + bytes(41))
            assert (await to_the_end(stream))[:1] == b"\x15"
    await until(lambda: refusals(gateway) == {("tls", "not TLS")}, gateway)


async def test_https_answers_carry_hsts(start_gateway: Any, authority: Authority) -> None:
    """On with TLS unless it is switched off."""
    gateway = await start_tls(start_gateway, authority.server())
    async with await connect(gateway.ws_port, authority.client()) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await to_the_end(stream)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Strict-Transport-Security: max-age=31536000\r\n" in answer


async def test_the_order_of_the_refusals(start_gateway: Any, authority: Authority) -> None:
    """A connection beyond the limit is refused before its handshake, by an alert: no key is used for it."""
    limits = {"TCP_MAX_CONNECTIONS": "1", "WORKERS": "1"}
    gateway = await start_tls(start_gateway, authority.server(), limits)
    async with tls_tcp_client(gateway, authority.client()):
        with pytest.raises(trio.BrokenResourceError) as broken:
            await connect(gateway.tcp_port, authority.client())
        assert "alert" in str(broken.value.__cause__).lower()


# --- hostile and slow peers


async def test_slow_handshakes_hurt_nobody(start_gateway: Any, authority: Authority) -> None:
    """150 clients that dribble their ClientHello all time out; meanwhile another client's calls go on and new clients
    come in, and afterwards nothing is left of them."""
    more = {"HANDSHAKE_TIMEOUT_MS": "3000", "WORKERS": "1"}
    gateway = await start_tls(start_gateway, authority.server(rsa_bits=4096), more)
    hello = client_hello(authority.client())
    ended = 0

    async def dribble(number: int) -> None:
        nonlocal ended
        stream = await trio.open_tcp_stream("127.0.0.1", (gateway.ws_port, gateway.tcp_port)[number % 2])
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                for index in range(number % len(hello)):
                    await stream.send_all(hello[index : index + 1])
                    await trio.sleep(0.01)
            await to_the_end(stream)
        ended += 1

    async with tls_ws_client(gateway, authority.client()) as client, trio.open_nursery() as nursery:
        await client.initialize()
        for number in range(150):
            nursery.start_soon(dribble, number)
        while ended < 150:
            await echo(client, "still here")
            async with tls_tcp_client(gateway, authority.client()) as other:
                await other.initialize()
    wanted = {("timeout", "no ClientHello"), ("timeout", "the handshake was not finished")}
    await until(lambda: refusals(gateway) >= wanted, gateway)


async def test_a_storm_of_handshakes_does_not_stop_the_loop(start_gateway: Any, authority: Authority) -> None:
    """While one worker signs 100 handshakes with RSA-4096, a client that is in gets its answers, and all 100 get in."""
    gateway = await start_tls(start_gateway, authority.server(rsa_bits=4096), {"WORKERS": "1"})
    context = authority.client()
    done = 0

    async def one() -> None:
        nonlocal done
        async with await connect(gateway.tcp_port, context):
            done += 1

    answers = 0
    async with tls_ws_client(gateway, context) as client, trio.open_nursery() as nursery:
        await client.initialize()
        for _ in range(100):
            nursery.start_soon(one)
        while done < 100:
            await echo(client, "still here")
            answers += 1
    assert answers > 1


async def test_half_a_handshake_ends_in_time(start_gateway: Any, authority: Authority) -> None:
    """A client that has its ServerHello and says nothing more is closed by the deadline, which is for the HTTP request
    behind the handshake too."""
    gateway = await start_tls(start_gateway, authority.server(), {"HANDSHAKE_TIMEOUT_MS": "1000"})
    for port in (gateway.ws_port, gateway.tcp_port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(client_hello(authority.client()))
            assert (await to_the_end(stream))[:1] == b"\x16"
    async with await connect(gateway.ws_port, authority.client()) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        assert b" 408 " in await to_the_end(stream)


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 300, b"\x17\x03\x03\x00\x05abcde", b"\x16\x03\x03\xff\xff" + b"x" * 70000]
)
async def test_garbage_after_the_client_hello(start_gateway: Any, authority: Authority, garbage: bytes) -> None:
    """It ends with an alert, and only itself."""
    gateway = await start_tls(start_gateway, authority.server(), {"WORKERS": "1"})
    async with tls_tcp_client(gateway, authority.client()) as client:
        await client.initialize()
        for port in (gateway.ws_port, gateway.tcp_port):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(client_hello(authority.client()) + garbage)
                await to_the_end(stream)
        await echo(client, "unhurt")
    await until(lambda: {reason for reason, _ in refusals(gateway)} == {"tls"}, gateway)


async def test_garbage_in_an_open_connection(start_gateway: Any, authority: Authority) -> None:
    """A record that was not made with the key ends the connection, with the reason in the audit log."""
    gateway = await start_tls(start_gateway, authority.server())
    async with tls_tcp_client(gateway, authority.client()) as client:
        await client.initialize()
        await client.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        await to_the_end(client.stream)
    await until(
        lambda: any(e["event"] == "connection.closed" and e["reason"] == "tls" for e in audited(gateway)), gateway
    )


async def test_truncation_shows(start_gateway: Any, authority: Authority) -> None:
    """An end of the TCP stream without close_notify is no end of the client's: what it waits for is not answered, and
    the audit log says truncated. With close_notify it is, and the answers still come."""
    gateway = await start_tls(start_gateway, authority.server())
    sleep = request("tools/call", {"name": "sleep", "arguments": {"seconds": 0.3}}, id=b'"slow"')
    async with tls_tcp_client(gateway, authority.client()) as client:
        await client.initialize()
        await client.send(sleep)
        await client.stream.transport_stream.send_eof()
        assert await to_the_end(client.stream) == b""
    await until(lambda: any(e.get("reason") == "truncated" for e in audited(gateway)), gateway)
    answered, closed = await trio.to_thread.run_sync(half_closed, gateway, authority.client(), sleep)
    assert json.loads(answered.splitlines()[-1])["id"] == "slow"
    assert closed


async def test_one_byte_at_a_time(start_gateway: Any, authority: Authority) -> None:
    """Handshake and records arrive in segments of one byte, and are understood."""
    gateway = await start_tls(start_gateway, authority.server())
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.tcp_port)

    class Dribbling(trio.abc.HalfCloseableStream):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            for index in range(len(data)):
                await stream.send_all(data[index : index + 1])

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await stream.receive_some(1)

        async def wait_send_all_might_not_block(self) -> None:
            await stream.wait_send_all_might_not_block()

        async def send_eof(self) -> None:
            await stream.send_eof()

        async def aclose(self) -> None:
            await stream.aclose()

    tls = trio.SSLStream(Dribbling(), authority.client(), server_hostname="localhost", https_compatible=True)
    async with tls:
        await tls.send_all(request("authenticate", {"token": gateway.tcp_token}, id=b"1") + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await tls.receive_some()
        assert json.loads(answer)["result"]["authenticated"] is True


# --- much data


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_ten_megabytes_both_ways(start_gateway: Any, authority: Authority, transport: str) -> None:
    """A message of nearly the largest size goes up and comes back whole, and a small call beside it goes on."""
    gateway = await start_tls(start_gateway, authority.server())
    text = "".join(chr(0x21 + n % 90) for n in range(5000)).replace('"', "'").replace("\\", "/") * 2000
    async with TLS_CLIENTS[transport](gateway, authority.client()) as client:
        await client.initialize()
        answer = await client.call("tools/call", {"name": "echo", "arguments": {"text": text}})
        assert answer["result"]["content"][0]["text"] == text
        await echo(client, "small")


async def test_a_slow_reader_is_ended_and_holds_nobody_up(start_gateway: Any, authority: Authority) -> None:
    """Who doesn't read its answers is closed after WRITE_TIMEOUT_MS; others of the same worker are served."""
    gateway = await start_tls(start_gateway, authority.server(), {"WRITE_TIMEOUT_MS": "1500", "WORKERS": "1"})
    big = request("tools/call", {"name": "echo", "arguments": {"text": "x" * 5_000_000}}, id=b"1")
    async with tls_tcp_client(gateway, authority.client()) as lazy, tls_ws_client(gateway, authority.client()) as busy:
        await lazy.initialize()
        await busy.initialize()
        for _ in range(3):
            await lazy.send(big)
        with trio.fail_after(60):
            while not any(e["event"] == "connection.closed" for e in audited(gateway)):
                await echo(busy, "served")
                await trio.sleep(0.02)
        [closed] = [e for e in audited(gateway) if e["event"] == "connection.closed"]
        assert closed["reason"] in ("write timeout", "slow reader")
        await echo(busy, "served")


# --- what the tests above are made of


def client_hello(context: ssl.SSLContext) -> bytes:
    """The first flight of a real client."""
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def half_closed(gateway: Any, context: ssl.SSLContext, last: bytes) -> tuple[bytes, bool]:
    """What still comes to a client that has said close_notify (but no FIN) behind its last message, and whether the
    end of that is a close_notify too."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", gateway.tcp_port), timeout=30) as sock:

        def run(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    result = step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    data = sock.recv(65536)
                    incoming.write(data) if data else incoming.write_eof()
                    continue
                sock.sendall(outgoing.read())
                return result

        run(tls.do_handshake)
        run(lambda: tls.write(request("authenticate", {"token": gateway.tcp_token}, id=b"0") + b"\n" + last + b"\n"))
        try:
            tls.unwrap()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
        # This client's own TLS is over; the records that follow are still decrypted by its read.
        data = b""
        while True:
            try:
                piece = run(lambda: tls.read(65536))
            except ssl.SSLZeroReturnError:
                return data, True
            except ssl.SSLError:
                return data, False
            data += piece
