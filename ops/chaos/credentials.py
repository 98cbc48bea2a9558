"""Ways to be somebody: what a client of the harness presents, and how it gets that."""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
import ssl
import time
import uuid
from pathlib import Path
from typing import Literal

import attrs
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Way = Literal["static", "jwt", "session", "access", "ticket", "certificate"]


@attrs.define
class Secrets:
    """What the gateway is configured with, made anew for each run of the harness."""

    static: str = attrs.field(factory=lambda: secrets.token_hex(32))
    jwt: str = attrs.field(factory=lambda: secrets.token_hex(32))

    def token(self, subject: str) -> str:
        """A JWT of the gateway's own issuer, an hour old, for eight hours more."""
        now = int(time.time())
        claims = {
            "iss": "portcullis",
            "aud": "portcullis",
            "sub": subject,
            "jti": uuid.uuid4().hex,
            "iat": now - 3600,
            "exp": now + 8 * 3600,
            "scope": "mcp:call mcp:read",
        }
        return jwt.encode(claims, self.jwt, algorithm="HS256")


class Authority:
    """A certificate authority in a directory, with the gateway's pair and one for each client that asks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chaos authority")])
        self._certificate = self._issue(self._name, self._key.public_key(), ca=True, names=[])
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self.certificate, self.key = self._pair("localhost")

    def environment(self) -> dict[str, str]:
        return {
            "SSL_ENABLED": "true",
            "SSL_CERT_PATH": str(self.certificate),
            "SSL_KEY_PATH": str(self.key),
            "SSL_CA_PATH": str(self.ca),
            "SSL_CLIENT_AUTH": "optional",
        }

    def client(self, name: str = "") -> ssl.SSLContext:
        """Trusts this authority; with a name it has a certificate for it."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if name:
            certificate, key = self._pair(name)
            context.load_cert_chain(certificate, key)
        return context

    def _pair(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if name == "localhost":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issued = self._issue(subject, key.public_key(), ca=False, names=names)
        certificate, private = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        certificate.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        private.touch(mode=0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private

    def _issue(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool, names: list[x509.GeneralName]
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=2))
            .not_valid_after(now + dt.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if ca:
            use = {"key_cert_sign": True, "crl_sign": True, "digital_signature": True}
        else:
            use = {"digital_signature": True, "key_cert_sign": False, "crl_sign": False}
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        builder = builder.add_extension(
            x509.KeyUsage(
                **use,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())
