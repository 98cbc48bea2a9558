"""The outside issuer's last good keys outlive auth: who was known stays known while the issuer is down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jwt_forge as forge
import pytest
from jwt_attacks import RSA_KID, served_keys
from jwt_forge import rsa_key
from key_server import key_server, says
from policy_worker import Worker, eventually, policy_worker

from actors import auth
from actors.kept_keys import FILE, KeptKeys
from actors.policy.jwks import MAX_SET
from ipc.messages import Authenticate, Grant, Message, Refused

SETTINGS: dict[str, Any] = {"ws_auth_token": ("w" * 32,), "jwt_secret": forge.SECRET}


async def asked(worker: Worker, token: str) -> Message:
    return await worker.ask("auth", Authenticate("ws", "token", token, "192.0.2.7"))


async def test_the_last_good_set_outlives_auth(tmp_path: Path) -> None:
    """With the issuer down, a new incarnation of auth knows the keys of before; a key that is not among them can't be
    judged, and is not called wrong. Another issuer has nothing of them, and a set that changes takes their place."""
    token = forge.outside(rsa_key("served"), RSA_KID)
    with key_server(served_keys()) as issuer:
        outside = {"jwt_jwks_issuer": forge.ISSUER, "jwt_jwks_audience": forge.AUDIENCE, "jwt_jwks_url": issuer.url}
        async with policy_worker(tmp_path, **SETTINGS, **outside) as worker:
            await worker.start("auth", auth.main)
            assert isinstance(await asked(worker, token), Grant)
            path = tmp_path / "state" / FILE
            await eventually(path.exists, within_s=20)
            assert path.stat().st_mode & 0o777 == 0o600
            await worker.kill("auth")
            issuer.answer = says(b"nope", "500 Internal Server Error")
            await worker.start("auth", auth.main)
            assert isinstance(await asked(worker, token), Grant)
            unknown = await asked(worker, forge.outside(rsa_key("other"), "another"))
            assert isinstance(unknown, Refused)
            assert unknown.reason == "unavailable"
            await worker.kill("auth")
            await worker.start("auth", auth.main, jwt_jwks_issuer="https://else.example")
            other = forge.outside(rsa_key("served"), RSA_KID, iss="https://else.example")
            assert isinstance(await asked(worker, other), Refused)
            await worker.kill("auth")
            issuer.serve(forge.key_set(forge.jwk(rsa_key("new"), "new")))
            await worker.start("auth", auth.main)
            assert isinstance(await asked(worker, forge.outside(rsa_key("new"), "new")), Grant)
            refused = await asked(worker, token)
            assert isinstance(refused, Refused)
            assert refused.reason == "auth"


def test_what_is_kept_is_bounded_private_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read back as it was for the same source, never through a link, and a failed write leaves what there was."""
    kept = KeptKeys(str(tmp_path), "issuer\nurl")
    assert kept.load() is None
    kept.save(b"one")
    assert kept.load() == b"one"
    assert KeptKeys(str(tmp_path), "other\nurl").load() is None
    kept.save(b"x" * (2 * MAX_SET))
    loaded = kept.load()
    assert loaded is not None
    assert len(loaded) <= MAX_SET + 1
    kept.save(b"two")

    def failing(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError):
            kept.save(b"three")
    assert kept.load() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    (tmp_path / FILE).rename(tmp_path / "target")
    (tmp_path / FILE).symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        kept.load()
