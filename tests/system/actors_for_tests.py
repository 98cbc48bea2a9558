"""Tiny actors for the supervisor's own tests. No table of the product names them.

They are driven by connections: a line comes in at an acceptor, an answer goes out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from ipc.context import Context
from ipc.errors import ActorDown, DeadlineExceeded
from ipc.messages import (
    AdminRequest,
    AuditAck,
    AuditBatch,
    Describe,
    Description,
    Disconnect,
    Done,
    Drain,
    LinksChanged,
    ListenersChanged,
    TreeSnapshot,
    Validate,
)

SECOND = 1_000_000_000


async def _serve(context: Context, answer: Callable[[Any], Any]) -> None:
    """Ready, and until drained: whatever ``answer`` returns is the reply."""
    context.ready()
    while True:
        for delivery in await context.mailbox.receive():
            if isinstance(delivery.message, Drain):
                return
            result = answer(delivery.message)
            if delivery.wants_reply:
                delivery.reply(result or Done(ok=False))


def _identity(context: Context) -> Description:
    return Description(json.dumps({"pid": os.getpid(), "incarnation": context.incarnation}).encode())


async def audit(context: Context) -> None:
    """Writes every event to STATE_DIR/events.jsonl and acks it."""
    path = Path(context.settings.state_dir) / "events.jsonl"

    def answer(message: Any) -> Any:
        if not isinstance(message, AuditBatch):
            return _identity(context)
        with path.open("a") as file:
            for number, event in enumerate(message.events, message.first):
                detail = {"number": number, "event": event.event, "reason": event.reason} | event.detail
                file.write(json.dumps(detail) + "\n")
        return AuditAck(message.first + len(message.events))

    await _serve(context, answer)


async def admin(context: Context) -> None:
    """Keeps the last snapshot in STATE_DIR/tree.json; passes Disconnect on to the supervisor as an AdminRequest."""
    path = Path(context.settings.state_dir) / "tree.json"
    context.ready()
    while True:
        for delivery in await context.mailbox.receive():
            match delivery.message:
                case Drain():
                    return
                case TreeSnapshot(data):
                    draft = path.with_suffix(".draft")
                    draft.write_bytes(data)
                    draft.replace(path)
                case Disconnect(verb):
                    request = AdminRequest(verb=verb)  # type: ignore[arg-type]
                    delivery.reply(await context.address("supervisor").ask(request, time.monotonic_ns() + SECOND))
                case _ if delivery.wants_reply:
                    delivery.reply(_identity(context))


async def idle(context: Context) -> None:
    await _serve(context, lambda _message: _identity(context))


async def validator(context: Context) -> None:
    """Answers each Validate that comes over a link with the size of its descriptor's file."""

    async def follow(key: str) -> None:
        link = context.links[key]
        try:
            while True:
                message, fds = await link.receive()
                size = sum(os.fstat(descriptor).st_size for descriptor in fds)
                for descriptor in fds:
                    os.close(descriptor)
                await link.send_wait(Validate(message.ticket, size, os.getpid()))
        except (EOFError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        for key in list(context.links):
            nursery.start_soon(follow, key)
        context.ready()
        while True:
            for delivery in await context.mailbox.receive():
                match delivery.message:
                    case Drain():
                        nursery.cancel_scope.cancel()
                        return
                    case LinksChanged(key):
                        nursery.start_soon(follow, key)
                    case _ if delivery.wants_reply:
                        delivery.reply(_identity(context))


async def bridge(context: Context) -> None:
    """Starts one server that starts a helper in a session of its own; their pids go to STATE_DIR/children."""
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    script += " start_new_session=True); time.sleep(600)"
    child = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment, and nobody waits
        [sys.executable, "-c", script], start_new_session=True, stdin=subprocess.DEVNULL
    )
    try:
        await _serve(context, lambda _message: _identity(context))
    finally:
        child.kill()
        child.wait()


async def raises_at_once(context: Context) -> None:
    raise RuntimeError("not today")


async def raises_when_asked(context: Context) -> None:
    """A Disconnect raises."""

    def answer(message: Any) -> Any:
        if isinstance(message, Disconnect):
            raise RuntimeError(message.connection)  # noqa: TRY004 - it stands for a bug
        return _identity(context)

    await _serve(context, answer)


async def stubborn(context: Context) -> None:
    """Hears no Drain and no cancellation."""
    context.ready()
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def liar(context: Context) -> None:
    """Told to, sends its peer what is no frame."""

    def answer(message: Any) -> Any:
        if isinstance(message, Disconnect):
            for entry in Path("/proc/self/fd").iterdir():
                descriptor = int(entry.name)
                try:
                    sock = socket.socket(fileno=os.dup(descriptor))
                except OSError:
                    continue
                with sock:
                    if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
                        sock.send(b"\xff" * 64)
        return _identity(context)

    await _serve(context, answer)


async def acceptor(context: Context) -> None:
    """Serves lines: ``who``, ``ask ACTOR``, ``link``, ``crash ACTOR``, ``spin``, ``stop``, ``listeners``."""
    scopes: dict[int, trio.CancelScope] = {}

    async with trio.open_nursery() as nursery:

        async def accept(sock: socket.socket) -> None:
            with trio.CancelScope() as scope:
                scopes[id(sock)] = scope
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    try:
                        connection, _ = sock.accept()
                    except BlockingIOError:
                        continue
                    nursery.start_soon(serve, trio.SocketStream(trio.socket.from_stdlib_socket(connection)))

        async def serve(stream: trio.SocketStream) -> None:
            buffer = b""
            async with stream:
                try:
                    while chunk := await stream.receive_some():
                        buffer += chunk
                        while b"\n" in buffer:
                            line, _, buffer = buffer.partition(b"\n")
                            result = await command(context, line.decode().split())
                            await stream.send_all(json.dumps(result).encode() + b"\n")
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return

        def sync() -> None:
            wanted = {id(listener.sock): listener.sock for listener in context.listeners}
            for key in [key for key in scopes if key not in wanted]:
                scopes.pop(key).cancel()
            for key, sock in wanted.items():
                if key not in scopes:
                    scopes[key] = trio.CancelScope()
                    nursery.start_soon(accept, sock)

        sync()
        context.ready()
        while True:
            for delivery in await context.mailbox.receive():
                match delivery.message:
                    case Drain():
                        nursery.cancel_scope.cancel()
                        return
                    case ListenersChanged():
                        sync()
                    case _ if delivery.wants_reply:
                        delivery.reply(_identity(context))


async def command(context: Context, words: list[str]) -> Any:
    match words:
        case ["who"]:
            return {"pid": os.getpid(), "worker": context.worker, "incarnation": context.incarnation}
        case ["listeners"]:
            return len(context.listeners)
        case ["ask", name]:
            return await _ask(context, name, Describe())
        case ["tell", name, argument]:
            return await _ask(context, name, Disconnect(argument))
        case ["link"]:
            return await _use_link(context)
        case ["spin"]:
            while True:
                pass
        case ["stop"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["environment"]:
            return dict(os.environ)
    return None


async def _ask(context: Context, name: str, message: Any) -> Any:
    try:
        answer = await context.address(name).ask(message, time.monotonic_ns() + 2 * SECOND)
    except (ActorDown, DeadlineExceeded) as error:
        return {"error": type(error).__name__, "reason": str(error)}
    return json.loads(answer.data) if isinstance(answer, Description) else {"ok": answer.ok, "detail": answer.detail}


async def _use_link(context: Context) -> Any:
    descriptor = os.memfd_create("payload")
    os.ftruncate(descriptor, 12345)
    link = context.links["validator"]
    try:
        await link.send_wait(Validate(1, 0, 0), [descriptor])
        message, _ = await link.receive()
    except (OSError, EOFError, trio.ClosedResourceError) as error:
        return {"error": str(error)}
    finally:
        os.close(descriptor)
    return {"size": message.size, "pid": message.max_depth}
