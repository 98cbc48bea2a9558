"""Listening sockets: one a worker, host and kind, on ports that nobody else has."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ipc.settings import Settings
from supervisor import listeners
from supervisor.listeners import Listeners, PortInUse

OWNERS = {"ws": ("edge.0", "edge.1"), "tcp": ("edge.0", "edge.1"), "health": ("admin",)}


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def open_all(**more: object) -> Listeners:
    hosts = {"ws_host": ("127.0.0.1", "::1"), "tcp_host": ("127.0.0.1",), "health_host": ("127.0.0.1",)}
    ports = {"ws_port": 0, "tcp_port": 0, "health_port": 0}
    return listeners.open_all(Settings(**(hosts | ports | more)), OWNERS)


def test_each_worker_has_its_own_sockets_on_one_port() -> None:
    """The number is the same on both hosts and for both workers; every socket is different and ready to accept."""
    opened = open_all()
    try:
        ws = [item for item in opened.all if item.kind == "ws"]
        assert [item.owner for item in ws] == ["edge.0", "edge.0", "edge.1", "edge.1"]
        assert {item.sock.getsockname()[1] for item in ws} == {opened.ports["ws"]}
        assert sorted({item.sock.getsockname()[0] for item in ws}) == ["127.0.0.1", "::1"]
        assert len({item.id for item in opened.all}) == len(opened.all) == 7
        assert [item.kind for item in opened.of("admin")] == ["health"]
        for item in opened.all:
            assert item.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert not item.sock.getblocking()
            assert not os.get_inheritable(item.sock.fileno())
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, opened.ports["ws"])) as client:
                assert client.getpeername()[1] == opened.ports["ws"]
    finally:
        opened.close()


def test_connections_are_spread_and_none_is_lost_with_a_closed_duplicate() -> None:
    """What waits in a backlog stays there while the supervisor holds the socket, whoever closes a duplicate."""
    opened = open_all()
    try:
        mine = opened.of("edge.0")[0].sock
        clients = [socket.create_connection(mine.getsockname()) for _ in range(32)]
        mine.dup().close()
        taken = 0
        for item in opened.all:
            if item.kind == "ws":
                try:
                    while True:
                        item.sock.accept()[0].close()
                        taken += 1
                except BlockingIOError:
                    continue
        assert taken == 32
        for client in clients:
            client.close()
    finally:
        opened.close()


@pytest.mark.parametrize("reuseport", [False, True])
def test_a_port_in_use_names_its_holder(reuseport: bool) -> None:
    """Also when the holder would share it (SO_REUSEPORT); nothing stays open."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuseport))
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        before = descriptors()
        with pytest.raises(PortInUse, match=rf"TCP_PORT: 127.0.0.1 port {port} .*pid {os.getpid()}") as raised:
            open_all(tcp_port=port)
        assert raised.value.holders == (os.getpid(),)
        assert descriptors() == before
        assert not listeners.left_behind(raised.value)


def test_an_address_that_is_not_ours_is_an_error() -> None:
    """It names the variable and the host."""
    with pytest.raises(OSError, match=r"TCP_HOST.*192\.0\.2\.1"):
        open_all(tcp_host=("192.0.2.1",))
