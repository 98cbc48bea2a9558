"""Sizes beyond the default ones, which the processes have to agree upon."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from large_clients import MIB, echo, raw_client

from actors.acceptor.routes import BridgeRoute
from actors.policy.jsonrpc import parse_client
from ipc.framing import FrameTooLong
from ipc.settings import Settings, Upstream


async def test_messages_far_beyond_the_default_sizes(start_gateway: Any) -> None:
    """A request and an answer of 20 MiB pass where the settings allow them, and the next client is served."""
    most = str(24 * MIB)
    sizes = {"MAX_REQUEST_SIZE": most, "MAX_RESPONSE_SIZE": most, "MAX_BUFFER_SIZE": most}
    environment = sizes | {"RATE_LIMIT_ENABLED": "false", "WORKERS": "1", "LOG_LEVEL": "warning"}
    gateway = await trio.to_thread.run_sync(lambda: start_gateway(environment=environment))
    async with raw_client(gateway, ws=False) as client, raw_client(gateway, ws=False) as other:
        await client.send(echo(20 * MIB, b'"big"'))
        answer = await client.answer()
        assert answer["id"] == "big"
        assert len(str(answer["result"])) > 20 * MIB - 4096
        await other.send(echo(1000, b'"small"'))
        assert (await other.answer())["id"] == "small"
    await trio.to_thread.run_sync(gateway.stop)


def test_a_message_that_fits_no_frame_is_refused() -> None:
    """413, unsent, and the step goes on; a notification is dropped."""
    posted: list[Any] = []
    counted: list[str] = []

    def tell(_message: Any) -> bool:
        raise FrameTooLong(2, 1)

    failed = object()
    hub = SimpleNamespace(
        settings=Settings(),
        name="acceptor.0",
        context=SimpleNamespace(address=lambda _name: SimpleNamespace(tell=tell)),
        post=posted.append,
        count=counted.append,
        answers=SimpleNamespace(failed=lambda *arguments: (failed, *arguments)),
    )
    route = BridgeRoute(hub, Upstream(name="u", kind="stdio"))  # type: ignore[arg-type]
    request = b'{"jsonrpc":"2.0","id":1,"method":"m"}'
    assert route.forward(5, 6, parse_client(request), request, 0)
    [call] = posted
    assert call() == (failed, 5, 6, 413, "message too large", False, 0)
    notification = b'{"jsonrpc":"2.0","method":"m"}'
    assert route.forward(5, 0, parse_client(notification), notification, 0)
    assert len(posted) == 1
    assert len(counted) == 2
