"""The TLS settings and their files: everything wrong is found at once, and said without a secret."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from ipc import tls_context
from ipc.settings import Settings
from supervisor.settings import tls_files
from supervisor.settings.load import load
from supervisor.settings.problems import ConfigurationError

NOW = datetime.now(UTC)


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def good(tmp_path: Path, ca: trustme.CA) -> dict[str, str]:
    return {"SSL_ENABLED": "true"} | write(tmp_path, ca.issue_cert("localhost"))


def write(directory: Path, leaf: trustme.LeafCert) -> dict[str, str]:
    (directory / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    (directory / "key.pem").touch(mode=0o600)
    (directory / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    return {"SSL_CERT_PATH": "cert.pem", "SSL_KEY_PATH": "key.pem"}


def problems(directory: Path, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load([], environ, directory)
    return [str(problem) for problem in refused.value.problems]


def warnings(directory: Path, environ: dict[str, str]) -> list[str]:
    return [str(warning) for warning in load([], environ, directory).warnings if "SSL_" in str(warning)]


def settings(directory: Path, environ: dict[str, str]) -> Settings:
    return load([], environ, directory).settings


def served(effective: Settings) -> list[ssl.SSLContext]:
    return list(tls_context.contexts(effective, tls_context.material(effective)).values())


def test_a_good_pair_is_accepted_without_a_word(tmp_path: Path, good: dict[str, str]) -> None:
    """And switches HSTS on."""
    assert warnings(tmp_path, good) == []
    assert settings(tmp_path, good).hsts_enabled


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Each file, and the ciphers."""
    environ = {
        "SSL_ENABLED": "true", "SSL_KEY_PATH": "none.pem", "SSL_CLIENT_AUTH": "required", "SSL_CA_PATH": ".",
        "SSL_CIPHERS": "NONSENSE",
    }  # fmt: skip
    found = problems(tmp_path, environ)
    assert {problem.split(" ")[0] for problem in found} == {
        "SSL_CERT_PATH", "SSL_KEY_PATH", "SSL_CA_PATH", "SSL_CIPHERS",
    }  # fmt: skip


def test_client_certificates_without_tls_are_an_error(tmp_path: Path) -> None:
    """Whoever wants them must not be left without in silence."""
    [problem] = problems(tmp_path, {"SSL_CLIENT_AUTH": "required", "SSL_ENABLED": "false"})
    assert problem.startswith("SSL_CLIENT_AUTH")


@pytest.mark.parametrize(
    ("broken", "field", "what"),
    [
        ("empty cert", "SSL_CERT_PATH", "no certificate"),
        ("key as cert", "SSL_CERT_PATH", "no certificate"),
        ("empty key", "SSL_KEY_PATH", "no private key"),
        ("other key", "SSL_KEY_PATH", "is not the key"),
        ("other kind of key", "SSL_KEY_PATH", "is not the key"),
        ("encrypted key", "SSL_KEY_PATH", "is encrypted"),
        ("fifo", "SSL_KEY_PATH", "no regular"),
        ("directory", "SSL_CERT_PATH", "no regular"),
        ("empty ca", "SSL_CA_PATH", "no certificate"),
    ],
)
def test_every_kind_of_broken_file(
    tmp_path: Path, ca: trustme.CA, good: dict[str, str], broken: str, field: str, what: str
) -> None:
    """The variable whose file it is, what is wrong with it, and nothing of what is in it."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    content = key.read_bytes()
    if broken == "empty cert":
        cert.write_bytes(b"")
    elif broken == "key as cert":
        cert.write_bytes(content)
    elif broken == "empty key":
        key.write_bytes(b"")
    elif broken == "other key":
        key.write_bytes(ca.issue_cert("other").private_key_pem.bytes())
    elif broken == "other kind of key":
        other = trustme.KeyType.RSA if b"EC PRIVATE" in content else trustme.KeyType.ECDSA
        key.write_bytes(ca.issue_cert("other", key_type=other).private_key_pem.bytes())
    elif broken == "encrypted key":
        private = serialization.load_pem_private_key(content, None)
        key.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"x"),
            )
        )
    elif broken == "fifo":
        key.unlink()
        os.mkfifo(key)
    elif broken == "directory":
        cert.unlink()
        cert.mkdir()
    else:
        (tmp_path / "ca.pem").write_bytes(b"")
        good |= {"SSL_CLIENT_AUTH": "optional", "SSL_CA_PATH": "ca.pem"}
    [problem] = problems(tmp_path, good)
    assert problem.startswith(field)
    assert what in problem
    assert not any(line.decode() in problem for line in content.splitlines()[1:-1])


def test_doubtful_pairs_are_warned_of(tmp_path: Path, ca: trustme.CA, good: dict[str, str]) -> None:
    """A key that everyone can read; a certificate that has ended, has not begun, or ends soon."""
    (tmp_path / "key.pem").chmod(0o644)
    [warning] = warnings(tmp_path, good)
    assert warning.startswith("SSL_KEY_PATH")
    (tmp_path / "key.pem").chmod(0o600)
    for life, what in (
        ({"not_after": NOW - timedelta(days=1)}, "has expired"),
        ({"not_before": NOW + timedelta(days=1)}, "not valid before"),
        ({"not_after": NOW + timedelta(days=2)}, "expires on"),
    ):
        write(tmp_path, ca.issue_cert("localhost", **life))
        [warning] = warnings(tmp_path, good)
        assert warning.startswith("SSL_CERT_PATH")
        assert what in warning


def test_production_without_tls_needs_to_say_so(tmp_path: Path) -> None:
    """TLS is the profile's default, and a default can't be served without a certificate."""
    found = problems(tmp_path, {"NODE_ENV": "production"})
    assert any(problem.startswith("SSL_CERT_PATH") and "SSL_ENABLED=false" in problem for problem in found)


def test_contexts_are_strict(tmp_path: Path, good: dict[str, str]) -> None:
    """No tickets, no renegotiation, no compression, nothing below TLS 1.2, and only ciphers with forward secrecy and
    authenticated encryption."""
    good |= {"SSL_CERT_PATH": str(tmp_path / "cert.pem"), "SSL_KEY_PATH": str(tmp_path / "key.pem")}
    for context in served(settings(tmp_path, good)):
        for option in (ssl.OP_NO_TICKET, ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION):
            assert context.options & option
        assert context.num_tickets == 0
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_NONE
        assert {cipher["aead"] for cipher in context.get_ciphers()} == {True}
        assert all(c["name"].startswith(("ECDHE-", "TLS_")) for c in context.get_ciphers())


def test_only_the_given_authority_vouches(tmp_path: Path, ca: trustme.CA, good: dict[str, str]) -> None:
    """Not the ones of the system."""
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    wanted = good | {"SSL_CLIENT_AUTH": "required", "SSL_CA_PATH": "ca.pem"}
    for context in served(settings(tmp_path, wanted)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1


def test_a_file_that_goes_while_it_is_looked_at(tmp_path: Path, good: dict[str, str]) -> None:
    """Between the check and the warnings: no error of its own."""
    found = settings(tmp_path, good)
    (tmp_path / "cert.pem").unlink()
    (tmp_path / "key.pem").unlink()
    assert list(tls_files.warnings(found, NOW)) == []
    assert {field for field, _ in tls_files.errors(found)} == {"ssl_cert_path", "ssl_key_path"}
