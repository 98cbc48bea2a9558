"""``python -m ops.bench.small_messages``: how many small messages an edge worker takes for a second of its processor.

One edge worker, the embedded server behind it, and clients on both listeners that each keep a few ``ping`` requests
in flight. Processor time is the edge's own, so what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import trio

from .clients import Client, connect
from .gateway import Gateway, running

PAD = "x" * 120  # about 200 bytes in all


def cpu_s(pid: int) -> float:
    """Processor time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(gateway: Gateway, connections: int, depth: int, seconds: float) -> float:
    """Messages for a second of the edge's processor time."""
    (edge,) = gateway.workers("edge")
    answered = 0

    async def one(client: Client) -> None:
        nonlocal answered
        raw = b"".join(
            client.framed(b'{"jsonrpc":"2.0","id":%d,"method":"ping","params":{"pad":"%s"}}' % (n, PAD.encode()))
            for n in range(depth)
        )
        while True:
            await client.stream.send_all(raw)
            for _ in range(depth):
                await client.next()
            answered += depth

    async with trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(one, await connect(gateway, ws=number % 2 == 0))
        await trio.sleep(0.5)
        before, count = cpu_s(edge), answered
        await trio.sleep(seconds)
        rate = (answered - count) / (cpu_s(edge) - before)
        nursery.cancel_scope.cancel()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.small_messages", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round (default 2)")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    with running({"WORKERS": "1"}) as gateway:
        for depth in (1, 16):
            rates = [
                trio.run(measure, gateway, options.connections, depth, options.seconds) for _ in range(options.rounds)
            ]
            print(
                f"depth {depth:3}: {statistics.median(rates):9.0f} messages for a processor second"
                f"   ({min(rates):.0f} to {max(rates):.0f})"
            )


if __name__ == "__main__":
    main()
