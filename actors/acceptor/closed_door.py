"""A listening socket that takes nobody any more, before it is closed."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_BPF_RET_K: Final = 0x06  # linux/bpf_common.h: BPF_RET | BPF_K


def drop_everything(listener: socket.socket) -> None:
    """Have the kernel drop every packet that arrives at this listening socket from now on.

    A classic socket filter (socket(7), SO_ATTACH_FILTER) of one instruction, "return 0 bytes". Connections that are
    in its queue, and those accepted before, are sockets of their own and aren't touched. Closing a listening socket
    resets what is in its queue; with the filter in place the queue can first be accepted empty.

    Some kernels let only privileged processes have a filter. There the queue is made as short as it gets: one that
    comes between the last accept and the close may still be reset, and no more than one.
    """
    program = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET_K, 0, 0, 0))  # struct sock_filter
    descriptor = struct.pack("@HP", 1, ctypes.addressof(program))  # struct sock_fprog
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
    except OSError:
        listener.listen(0)
