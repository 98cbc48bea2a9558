"""Counters that never go back, made of counters that begin anew with each incarnation of whoever counts. Pure.

What the last incarnation had counted, as far as it was heard of, is added to what the present one counts. The book can
be written down and read again, so that a new incarnation of its owner goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


class _Row(msgspec.Struct, array_like=True):
    """``before`` is what earlier incarnations had counted, ``latest`` what incarnation ``of`` said last."""

    before: float
    latest: float
    of: int

    @property
    def total(self) -> float:
        return self.before + self.latest


_decoder = msgspec.json.Decoder(dict[str, _Row])
MOST = 4096
"""Counters at most; what is more is not shown."""


class Totals:
    """Args:
    book: what ``written`` gave; one that can't be read is an empty one.
    """

    def __init__(self, book: bytes = b"") -> None:
        try:
            self._rows = _decoder.decode(book)
        except msgspec.MsgspecError:
            self._rows = {}

    def heard(self, counter: str, incarnation: int, value: float) -> float:
        """That incarnation says that it has counted so much: the total."""
        row = self._rows.get(counter)
        if row is None:
            if len(self._rows) >= MOST:
                return value
            row = self._rows[counter] = _Row(0, value, incarnation)
        elif row.of != incarnation or value < row.latest:
            row.before, row.latest, row.of = row.total, value, incarnation
        else:
            row.latest = value
        return row.total

    def everything(self) -> Iterator[tuple[str, float]]:
        for counter, row in self._rows.items():
            yield counter, row.total

    def written(self) -> bytes:
        return msgspec.json.encode(self._rows)
