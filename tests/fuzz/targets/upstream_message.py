"""Messages of upstreams: ``parse_upstream``.

The invariant: any bytes are one message, or a ValueError; what is read of one is what another reader of JSON sees,
the envelope's keys stand in it once, and the bytes at the offsets are the values that they are said to be.
"""

from __future__ import annotations

from strict_reader import ABSENT, Malformed, Pairs, TooDeep, read

from actors.policy.jsonrpc import parse_upstream

SEEDS = [
    b'{"jsonrpc":"2.0","id":1,"result":{"content":[]}}',
    b'{"result":{},"jsonrpc":"2.0","id":"a"}',
    b'{"error":{"code":1,"message":""},"jsonrpc":"2.0","id":-0}',
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"progress":1e1}}',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"3"}}',
    b'{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"u:/a",'
    b'"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}',
    b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}',
    b'{"jsonrpc":"2.0","id":5,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":5,"result":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s"}}}',
    b"Listening on stdio\n",
]


def check(data: bytes) -> None:
    try:
        message = parse_upstream(data)
    except ValueError:
        return
    try:
        document = read(data)
    except TooDeep:
        return  # beyond the other reader's stack, not beyond ours
    except Malformed as error:
        raise AssertionError("not JSON") from error
    assert isinstance(document, Pairs)
    keys = document.names
    assert len(set(keys)) == len(keys)
    assert document.last("jsonrpc") == "2.0"
    own_id = document.last("id")
    assert (message.id_at >= 0) == (message.kind != "notification")
    if message.id_at >= 0:
        assert data.startswith(message.id, message.id_at)
        assert read(message.id) == own_id
    if message.kind == "response":
        assert document.last("method") is ABSENT
        assert message.error == (document.last("error") not in (ABSENT, None))
        holder = document.last("result")
    else:
        assert message.method == document.last("method")
        holder = document.last("params")
    for value, at, path in (
        (message.progress, message.progress_at, ("progressToken",)),
        (message.target, message.target_at, ("requestId",)),
        (message.subscription, message.subscription_at, ("_meta", "io.modelcontextprotocol/subscriptionId")),
    ):
        if at < 0:
            assert value == b""
            continue
        found = holder
        for key in path:
            assert isinstance(found, Pairs)
            found = found.last(key)
        assert data.startswith(value, at)
        assert read(value) == found
