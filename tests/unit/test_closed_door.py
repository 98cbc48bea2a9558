"""A listening socket that takes nobody any more, on kernels that allow the filter and on those that don't."""

from __future__ import annotations

import socket
from typing import Any

from actors.acceptor.closed_door import drop_everything

TCP_INFO_SACKED = 28
"""Offset of tcpi_sacked (linux/tcp.h), which for a listening socket is the length that its queue may have."""


class _Unprivileged(socket.socket):
    def setsockopt(self, *arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")


def longest_queue(listener: socket.socket) -> int:
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int.from_bytes(info[TCP_INFO_SACKED : TCP_INFO_SACKED + 4], "little")


def test_without_the_privilege_the_queue_becomes_short() -> None:
    """No error, which would end the acceptor in the middle of a drain; what waits is still there to be accepted."""
    with _Unprivileged() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        assert longest_queue(listener) == 64
        with socket.create_connection(listener.getsockname()):
            drop_everything(listener)
            assert longest_queue(listener) == 0
            listener.accept()[0].close()
