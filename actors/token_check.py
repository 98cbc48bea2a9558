"""What auth asks about a JWT: whom it speaks for. Joins the rules, the outside issuer's keys, and who waits for them.

A token that names a key which isn't known may be the first one of a new key. Its question waits, in a bounded list, for
the one reading of the keys that is under way; when there has just been one, the token is wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ipc.mailbox import Delivery
from ipc.settings import Settings

from .audit_ring import AuditRing
from .key_source import key_source
from .policy.identity import Identity
from .policy.jwks import KeySet, KeyUnknown
from .policy.jwt_tokens import IsRevoked, OutsideIssuer, OwnIssuer, Times, TokenRefused, Verifier, never_revoked

# More connections than this are not in their handshakes at once by default.
MOST_WAITING: Final = 256


class KeysAwaited(TokenRefused):
    """The keys are being read: ask again afterwards (``TokenCheck.wait``)."""


class KeysUnavailable(TokenRefused):
    """The issuer's keys can't be read, so nothing can be said about this token."""


class TokenCheck:
    """Args:
    audit: of the actor auth.
    again: takes each waiting question again, after a reading of the keys.
    is_revoked: asked for every token that is valid otherwise.
    """

    def __init__(
        self,
        settings: Settings,
        audit: AuditRing,
        again: Callable[[Delivery], None],
        is_revoked: IsRevoked = never_revoked,
    ) -> None:
        self._verifier = verifier_of(settings, is_revoked)
        self._again = again
        self._waiting: deque[Delivery] = deque()
        self._source = key_source(settings, audit, self._changed, self._settled)

    def verify(self, token: str, now_ms: int) -> Identity:
        """Whom this token speaks for at that wall-clock time.

        Raises TokenRefused, or one of its kinds above.
        """
        try:
            return self._verifier.verify(token, now_ms)
        except KeyUnknown as unknown:
            source = self._source
            if source is None:
                raise
            if source.want():
                raise KeysAwaited(unknown.reason) from None
            if not source.is_current:
                raise KeysUnavailable("token keys unavailable") from None
            raise

    def wait(self, delivery: Delivery) -> bool:
        """Have a question asked again after the reading. False: too many wait already."""
        if len(self._waiting) >= MOST_WAITING:
            return False
        self._waiting.append(delivery)
        return True

    async def run(self) -> None:
        """Keep the outside issuer's keys, if there is one."""
        if self._source is not None:
            await self._source.run()

    def describe(self) -> dict[str, int | bool]:
        counted = self._verifier.statistics()
        found: dict[str, int | bool] = {
            "verified": counted.verified,
            "remembered": counted.remembered,
            "signatures_checked": counted.signatures_checked,
            "waiting": len(self._waiting),
        }
        if self._source is not None:
            keys = self._source.statistics()
            found |= {"keys": keys.keys, "key_readings": keys.readings, "key_failures": keys.failures}
            found["keys_failing"] = keys.failing
        return found

    def _changed(self, keys: KeySet) -> None:
        self._verifier.use_keys(keys)

    def _settled(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for delivery in waiting:
            self._again(delivery)


def verifier_of(settings: Settings, is_revoked: IsRevoked = never_revoked) -> Verifier:
    """The settings have been checked: what they hold is a usable configuration."""
    own = outside = None
    if settings.jwt_secret:
        secrets = [secret for secret in (settings.jwt_secret, settings.jwt_secret_previous) if secret]
        own = OwnIssuer.of(settings.jwt_issuer, settings.jwt_audience, secrets, settings.jwt_algorithms)
    if settings.jwt_jwks_url or settings.jwt_jwks_file:
        outside = OutsideIssuer(
            issuer=settings.jwt_jwks_issuer,
            audience=settings.jwt_jwks_audience,
            algorithms=frozenset(settings.jwt_jwks_algorithms),
        )
    times = Times(settings.jwt_leeway_ms, settings.jwt_max_ttl_ms)
    return Verifier(own=own, outside=outside, times=times, is_revoked=is_revoked)
