"""Which rows of the log are about a customer's credit, and what their details say (`billing/accounts.py`)."""

from __future__ import annotations

import msgspec

from billing.accounts import Committed, Entry, Freed, Held, Released, Reserved, Restored, Settled
from storage.usage_log.segment import RowKind

ENTRIES: dict[int, type[Entry]] = {
    int(RowKind.RESERVED): Reserved,
    int(RowKind.COMMITTED): Committed,
    int(RowKind.RELEASED): Released,
    int(RowKind.WALLET_HELD): Held,
    int(RowKind.WALLET_SETTLED): Settled,
    int(RowKind.WALLET_FREED): Freed,
    int(RowKind.WALLET_RESTORED): Restored,
}
KINDS = frozenset(ENTRIES)
_DECODERS = {kind: msgspec.json.Decoder(entry) for kind, entry in ENTRIES.items()}


def entry_of(kind: int, detail: str) -> Entry:
    """What a row of one of `KINDS` says."""
    return _DECODERS[kind].decode(detail)
