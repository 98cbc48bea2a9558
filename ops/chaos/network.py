"""The network between some of the clients and the gateway: a relay on loopback that can be made to misbehave."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from typing import Literal

import attrs
import trio

Weather = Literal["calm", "delay", "split", "join", "blackhole"]

_RESET = struct.pack("ii", 1, 0)


@attrs.define(eq=False)
class Network:
    """Relays to ``port``. ``source`` is the address that the gateway sees."""

    port: int
    source: str
    weather: Weather = "calm"
    _random: random.Random = attrs.field(factory=random.Random)
    _open: set[trio.SocketStream] = attrs.field(factory=set, init=False)
    refused: int = attrs.field(default=0, init=False)  # connections that the gateway's port did not take
    own_port: int = attrs.field(default=0, init=False)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.own_port = listeners[0].socket.getsockname()[1]
            task_status.started()
            await trio.serve_listeners(self._relay, listeners, handler_nursery=nursery)

    def reset(self) -> None:
        """Both sides of every connection get a reset."""
        for stream in list(self._open):
            with contextlib.suppress(OSError):
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            stream.socket.close()

    async def _relay(self, client: trio.SocketStream) -> None:
        sock = trio.socket.socket()
        try:
            await sock.bind((self.source, 0))
            await sock.connect(("127.0.0.1", self.port))
        except OSError as error:
            self.refused += isinstance(error, ConnectionRefusedError)
            sock.close()
            await trio.aclose_forcefully(client)
            return
        server = trio.SocketStream(sock)
        self._open |= {client, server}
        try:
            async with trio.open_nursery() as nursery:
                for source, sink in ((client, server), (server, client)):
                    nursery.start_soon(self._carry, source, sink, nursery.cancel_scope)
        finally:
            self._open -= {client, server}
            for stream in (client, server):
                await trio.aclose_forcefully(stream)

    async def _carry(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(1 << 16):
                while self.weather == "blackhole":
                    await trio.sleep(0.02)
                if self.weather == "delay":
                    await trio.sleep(self._random.uniform(0.02, 0.2))
                elif self.weather == "join":
                    await trio.sleep(0.1)  # what comes meanwhile is read in one piece
                if self.weather == "split":
                    at = 0
                    while at < len(data):
                        size = self._random.randint(1, max(8, len(data) // 16))
                        await sink.send_all(data[at : at + size])
                        await trio.sleep(0.001)
                        at += size
                else:
                    await sink.send_all(data)
        both.cancel()
