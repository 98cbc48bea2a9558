"""A worker process for tests: ``python answering_worker.py FD``. Its actor ``target`` echoes requests with a Ticket,
and keeps silent to all others."""

from __future__ import annotations

import socket
import sys

import trio

from ipc.exchange import Exchange
from ipc.mailbox import Mailbox
from ipc.messages import Ticket


async def main(fd: int) -> None:
    exchange = Exchange("far", {"user": "near", "target": "far"})
    mailbox = Mailbox("target", data=16)
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        exchange.connect("near", socket.socket(fileno=fd))
        exchange.register(mailbox, 1)
        while True:
            for delivery in await mailbox.receive():
                if delivery.wants_reply and isinstance(delivery.message, Ticket):
                    delivery.reply(delivery.message)


trio.run(main, int(sys.argv[1]))
