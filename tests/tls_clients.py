"""Certificates, gateways with TLS, and clients that reach them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from trio_websocket import wrap_client_stream
from trustme import KeyType
from wire_clients import TcpClient, WsClient

UNLIMITED = {
    "RATE_LIMIT_BURST_REQUESTS": "100000",
    "RATE_LIMIT_MAX_REQUESTS": "100000",
    "CONNECTION_RATE_LIMIT": "100000",
    "MAX_CONNECTIONS_PER_IP": "1000",
    "WS_MAX_CONNECTIONS": "1000",
    "TCP_MAX_CONNECTIONS": "1000",
    "AUTO_BLOCK_ENABLED": "false",
}


@attrs.define
class Authority:
    """A certificate authority and the files of a gateway whose certificate it has issued."""

    directory: Path
    ca: trustme.CA = attrs.field(factory=trustme.CA)

    @property
    def ca_path(self) -> Path:
        path = self.directory / "ca.pem"
        if not path.exists():
            self.ca.cert_pem.write_to_path(str(path))
        return path

    def server(self, *, rsa_bits: int = 0, name: str = "localhost") -> dict[str, str]:
        """(Re)write the gateway's pair: EC, or RSA of that size. The variables that name it."""
        cert, key = self.directory / "server.pem", self.directory / "server.key"
        if rsa_bits:
            chain, private = self._rsa(rsa_bits, name)
        else:
            leaf = self.ca.issue_cert(name, "127.0.0.1", key_type=KeyType.ECDSA)
            chain, private = b"".join(pem.bytes() for pem in leaf.cert_chain_pems), leaf.private_key_pem.bytes()
        cert.write_bytes(chain)
        key.touch(mode=0o600)
        key.write_bytes(private)
        return {"SSL_ENABLED": "true", "SSL_CERT_PATH": str(cert), "SSL_KEY_PATH": str(key)}

    def client_auth(self, mode: str) -> dict[str, str]:
        return {"SSL_CLIENT_AUTH": mode, "SSL_CA_PATH": str(self.ca_path)}

    def client(self, **options: Any) -> ssl.SSLContext:
        """A client that trusts this authority. ``options``: of ``certificate``, for one that has a certificate."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if options:
            issued_by = options.pop("by", self.ca)
            issued_by.issue_cert(*options.pop("identities", ("client.example",)), **options).configure_cert(context)
        return context

    def _rsa(self, bits: int, name: str) -> tuple[bytes, bytes]:
        """trustme's own RSA keys have 2048 bits; this one is put into a certificate that it has issued."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        template = x509.load_pem_x509_certificate(self.ca.issue_cert(name, "127.0.0.1").cert_chain_pems[0].bytes())
        builder = x509.CertificateBuilder(
            issuer_name=template.issuer,
            subject_name=template.subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=template.not_valid_before_utc,
            not_valid_after=template.not_valid_after_utc,
            extensions=[e for e in template.extensions if e.oid != x509.SubjectKeyIdentifier.oid],
        )
        signer = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        signed = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
        form = serialization.PrivateFormat.TraditionalOpenSSL
        pem = serialization.Encoding.PEM
        return signed.public_bytes(pem), key.private_bytes(pem, form, serialization.NoEncryption())


async def start_tls(start_gateway: Callable[..., Any], *environments: dict[str, str], **more: Any) -> Any:
    """A gateway with all these variables, and no limits in the way."""
    environment = UNLIMITED | {name: value for each in environments for name, value in each.items()}
    return await trio.to_thread.run_sync(lambda: start_gateway(environment=environment, **more))


async def connect(port: int, context: ssl.SSLContext, name: str = "localhost") -> trio.SSLStream[trio.SocketStream]:
    """A TLS stream whose handshake is done."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    tls = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


@asynccontextmanager
async def tls_tcp_client(
    gateway: Any, context: ssl.SSLContext, *, token: str | None = None
) -> AsyncIterator[TcpClient]:
    """An authenticated TCP connection; with an empty token nothing is said (a certificate speaks for itself)."""
    async with await connect(gateway.tcp_port, context) as stream:
        client = TcpClient(stream)  # type: ignore[arg-type]
        if token != "":
            answer = await client.call("authenticate", {"token": token or gateway.tcp_token}, id=b'"auth"')
            assert answer["result"]["authenticated"] is True, answer
        yield client


@asynccontextmanager
async def tls_ws_client(gateway: Any, context: ssl.SSLContext, *, token: str | None = None) -> AsyncIterator[WsClient]:
    """An upgraded connection; with an empty token no credential is sent."""
    headers = [] if token == "" else [(b"Authorization", b"Bearer " + (token or gateway.ws_token).encode())]
    async with trio.open_nursery() as nursery:
        stream = await connect(gateway.ws_port, context)
        connection = await wrap_client_stream(
            nursery, stream, f"localhost:{gateway.ws_port}", "/",
            extra_headers=headers, subprotocols=["mcp"], max_message_size=32 << 20,
        )  # fmt: skip
        async with connection:
            yield WsClient(connection)
        nursery.cancel_scope.cancel()


TLS_CLIENTS = {"tcp": tls_tcp_client, "ws": tls_ws_client}
