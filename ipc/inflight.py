"""What one actor holds of the clients' bytes, published for all workers in the ledger (``ipc.ledger``)."""

from __future__ import annotations

import os
from typing import Final

from .ledger import Ledger, create
from .messages import LARGE as LARGE

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
