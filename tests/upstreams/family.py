"""Starts processes that want to outlive it, writes ``{name: pid}`` to ``--pids FILE`` (complete when it appears), then
answers every request.

``plain`` stays in its group; ``setsid`` has left it and ignores SIGTERM; ``orphan`` has done both and lost its parent
(a double fork); ``launcher`` is what npx is to a server. With ``--stubborn`` the server itself ignores SIGTERM and the
end of its input.
"""

import json
import os
import signal
import time

from channel import arguments, initialize, publish, serve

options = arguments(("--pids", {"required": True}), ("--stubborn", {"action": "store_true"}))


def wait_forever(*, ignoring):
    if ignoring:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def fork(*, setsid=False, ignoring=False, twice=False):
    """A child that waits for ever; its pid."""
    read, write = os.pipe()
    if os.fork() == 0:
        if setsid:
            os.setsid()
        if twice and os.fork() != 0:
            os._exit(0)
        os.write(write, b"%d" % os.getpid())
        os.close(write)
        null = os.open(os.devnull, os.O_RDWR)
        if twice:
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
        wait_forever(ignoring=ignoring)
    os.close(write)
    pid = int(os.read(read, 32))
    os.close(read)
    if twice:
        os.wait()
    return pid


family = {
    "server": os.getpid(),
    "plain": fork(),
    "setsid": fork(setsid=True, ignoring=True),
    "orphan": fork(setsid=True, ignoring=True, twice=True),
}
publish(options.pids, json.dumps(family))


def handle(channel):
    for line in channel:
        request = json.loads(line)
        if request.get("method") == "initialize":
            channel.answer(request, initialize(request))
        elif request.get("method") == "test/die":
            os._exit(1)
        elif "id" in request:
            channel.answer(request, {})


if options.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
serve(options, handle)
if options.stubborn:
    wait_forever(ignoring=True)
