"""Which sessions subscribed to which resources of a shared legacy upstream, to which they all are one client."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

MAX_URIS = 1024  # of one session; an editor's open files are some tens
MAX_URI = 8192  # characters; RFC 9110 §4.1 asks for at least 8000 octets
_MAX_SEGMENTS = 128  # of an updated URI: each is one look-up


@attrs.define
class Subscriptions:
    """By URI, counted: the first subscriber makes a subscription upstream, the last one to leave ends it."""

    by_uri: dict[str, set[Hashable]] = attrs.field(factory=dict)
    by_session: dict[Hashable, set[str]] = attrs.field(factory=dict)

    def has_room(self, session: Hashable, uri: str) -> bool:
        return len(uri) <= MAX_URI and len(self.by_session.get(session, ())) < MAX_URIS

    def add(self, session: Hashable, uri: str) -> bool:
        """Returns whether it is new."""
        uris = self.by_session.setdefault(session, set())
        if uri in uris:
            return False
        uris.add(uri)
        self.by_uri.setdefault(uri, set()).add(session)
        return True

    def remove(self, session: Hashable, uri: str) -> bool:
        """Returns whether nobody is left who wants this URI."""
        uris = self.by_session.get(session)
        if uris is not None and uri in uris:
            uris.remove(uri)
            if not uris:
                del self.by_session[session]
            holders = self.by_uri[uri]
            holders.remove(session)
            if not holders:
                del self.by_uri[uri]
        return uri not in self.by_uri

    def forget(self, session: Hashable) -> list[str]:
        """The session has gone. Returns the URIs that nobody wants any more."""
        return [uri for uri in sorted(self.by_session.get(session, ())) if self.remove(session, uri)]

    def subscribers(self, uri: str) -> list[Hashable]:
        """Who is told of an update: the URI's own subscribers and those of a resource that it is a part of."""
        found: dict[Hashable, None] = dict.fromkeys(self.by_uri.get(uri, ()))
        if len(uri) <= MAX_URI and uri.count("/") <= _MAX_SEGMENTS:
            at = uri.find("/")
            while at >= 0:
                found.update(dict.fromkeys(self.by_uri.get(uri[:at], ())))
                found.update(dict.fromkeys(self.by_uri.get(uri[: at + 1], ())))
                at = uri.find("/", at + 1)
        return list(found)
