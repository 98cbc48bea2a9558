"""What one actor holds of the clients' bytes, published for all workers in the ledger (``ipc.ledger``)."""

from __future__ import annotations

import os
from typing import Final

from .ledger import Ledger, create

LARGE: Final = 64 * 1024
"""Bytes from which on a message is counted by itself. It is what an acceptor reads of a connection at a time, so that
no message which arrives in one read is."""

# The words of a row.
HELD: Final = 0
WANT_NS: Final = 1
WANT_BYTES: Final = 2
YOUNGEST_NS: Final = 3


def open_account(descriptor: int) -> Ledger:
    """A row of the shared table; of one's own table where there is none to share (``Context.ledger`` is -1)."""
    if descriptor >= 0:
        return Ledger(descriptor)
    own = create()
    try:
        return Ledger(own)
    finally:
        os.close(own)
