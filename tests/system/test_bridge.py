"""The bridge actor over real stdio servers, good and bad."""

from __future__ import annotations

from bridge_rig import embedded, rig


async def test_smoke() -> None:
    """A call goes through."""
    async with rig(embedded()) as bridge:
        one = bridge.client("embedded", 1)
        assert (await one.initialize())["protocolVersion"] == "2025-11-25"
        result = await one.call("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}}, id="x")
        assert result["structuredContent"] == {"sum": 3}
        print(await bridge.describe())
        await bridge.drain()
        print(bridge.events, bridge.outcomes)
