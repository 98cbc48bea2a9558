"""``python -m ops.bench.neighbours``: what one client's load costs another client of the same worker.

A quiet client asks ``ping`` now and then, first alone, then while another client (a process of its own) sends to a
server of its own, through the same edge and bridge,

- hostile strings: calls with 1 MB of what makes backtracking patterns slow, one after the other;
- encoded strings: calls with 249 KB of percent-encoding, just small enough to be parsed between two turns;
- 10 MB bodies: the largest calls that pass, one after the other;
- 300,000 empty fragments, and 50,000 pings: as fast as they go, with a new connection whenever it is cut off.

One edge worker serves both. The table has the quiet client's median and 99th percentile in milliseconds, and their
ratio to those without a neighbour. On a machine with few processors part of that is the processors' being shared.
It takes less than a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import attrs
import trio

from .clients import connect, frame_head
from .gateway import Gateway, running

PAUSE_S = 0.004  # of the quiet client, between an answer and the next question
MIB = 1 << 20


@attrs.frozen
class Load:
    title: str
    kind: str
    amount: int  # messages, fragments or pings; 0: as many as fit in the time


LOADS = (
    Load("1 MB hostile strings", "hostile", 0),
    Load("249 KB encoded strings", "encoded", 0),
    Load("10 MB bodies", "bodies", 0),
    Load("300,000 empty fragments", "fragments", 300_000),
    Load("50,000 pings", "pings", 50_000),
)


def call(text: bytes) -> bytes:
    head = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"'
    return head + text + b'"}}}'


HOSTILE = (b"on" * 64 + b"<ScRiPt\\u003e ../%2e%2e/ ' oR 1=1 -- " + b"a" * 64) * (MIB // 230)

TEXTS = {"hostile": HOSTILE, "encoded": b"%41x" * 62_000, "bodies": b"x" * (10 * MIB - 200)}


async def attack(gateway: Gateway, kind: str, amount: int, seconds: float) -> int:
    """Until the amount is sent or the time is over; how much was sent."""
    sent = 0
    with trio.move_on_after(seconds):
        while not amount or sent < amount:
            try:
                client = await connect(gateway, ws=True, server="busy")
            except (EOFError, OSError):
                await trio.sleep(0.05)
                continue
            async with client.stream:
                try:
                    if kind in TEXTS:
                        raw = client.framed(call(TEXTS[kind]))
                        while True:
                            await client.stream.send_all(raw)
                            await client.next()
                            sent += 1
                    if kind == "fragments":
                        await client.stream.send_all(frame_head(0, first=0x01))
                    chunk = frame_head(0, first=0x00 if kind == "fragments" else 0x89) * 1000
                    while sent < amount:
                        await client.stream.send_all(chunk)
                        sent += 1000
                except (EOFError, OSError, trio.BrokenResourceError):
                    continue
    return sent


async def listen(gateway: Gateway, seconds: float) -> list[float]:
    """The quiet client's times, in milliseconds, ascending."""
    client = await connect(gateway, ws=True)
    times = []
    async with client.stream:
        raw = client.framed(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            await client.stream.send_all(raw)
            await client.next()
            times.append((time.perf_counter() - began) * 1000)
            await trio.sleep(PAUSE_S)
    return sorted(times)


def _beside(gateway: Gateway, load: Load, seconds: float) -> tuple[list[float], int]:
    attacker = subprocess.Popen(  # noqa: S603 - this module again
        [
            *(sys.executable, "-P", "-m", "ops.bench.neighbours", "--attack", load.kind),
            *("--amount", str(load.amount), "--seconds", str(seconds)),
        ],
        env={**os.environ, "BENCH_PORT": str(gateway.ws_port), "BENCH_TOKEN": gateway.token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert attacker.stdout is not None  # noqa: S101 - it was asked for
        attacker.stdout.readline()  # it is about to begin
        times = trio.run(listen, gateway, seconds - 0.5)
        told, _ = attacker.communicate(timeout=30)
        return times, int(told)
    finally:
        attacker.kill()
        attacker.wait()


def _point(times: list[float], part: float) -> float:
    return times[min(len(times) - 1, int(len(times) * part))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.neighbours", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=7.0, help="for each load (default 7)")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        os.nice(5)
        here = Gateway(Path(), int(os.environ["BENCH_PORT"]), 0, 0, os.environ["BENCH_TOKEN"])
        print(flush=True)
        print(trio.run(attack, here, options.attack, options.amount, options.seconds))
        return
    seconds = min(options.seconds, 9.0)
    with running({"WORKERS": "1", "CONNECTION_RATE_LIMIT": "1000000"}, ("quiet", "busy")) as gateway:
        trio.run(listen, gateway, 1.0)  # warm
        quiet = trio.run(listen, gateway, seconds)
        p50, p99 = _point(quiet, 0.5), _point(quiet, 0.99)
        print(f"{len(os.sched_getaffinity(0))} processors, load average {os.getloadavg()[0]:.1f}")
        print(f"{'neighbour':26}{'sent':>9}{'asked':>7}{'p50 ms':>9}{'ratio':>7}{'p99 ms':>9}{'ratio':>7}{'max ms':>9}")
        print(f"{'none':26}{'':9}{len(quiet):7}{p50:9.2f}{'':7}{p99:9.2f}{'':7}{quiet[-1]:9.2f}")
        for load in LOADS:
            times, sent = _beside(gateway, load, seconds)
            mid, high = _point(times, 0.5), _point(times, 0.99)
            print(
                f"{load.title:26}{sent:9}{len(times):7}{mid:9.2f}{mid / p50:7.1f}{high:9.2f}{high / p99:7.1f}"
                f"{times[-1]:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
