"""The client over TLS: whom it trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio
import trio_websocket
import trustme

from ops.cli.failure import Unreachable
from ops.cli.ws_link import open_ws


async def test_a_certificate_is_verified(tmp_path: Path) -> None:
    """wss:// works with the right authority, and with no other: the token is not sent to whoever answers."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    requests = 0

    async def serve(request: trio_websocket.WebSocketRequest) -> None:
        nonlocal requests
        requests += 1
        connection = await request.accept()
        await connection.send_message(await connection.get_message())

    async def handle(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError:
                return
            await serve(await trio_websocket.wrap_server_stream(nursery, tls))

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        url = f"wss://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with open_ws(url, "token", ssl_context=trusting) as link:
            await link.send("¿qué?".encode())
            assert await link.receive() == "¿qué?".encode()
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            async with open_ws(url, "token"):
                pass
        nursery.cancel_scope.cancel()
    assert requests == 1
