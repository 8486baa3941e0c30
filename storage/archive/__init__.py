"""The Cloud Archive: `register` keeps and finds, `packs` says where bytes lie, `retention` how long, `deletion` how
they go, `rights` who reads, `proof` and `roots` that nothing was changed."""

from storage.archive.entries import GENESIS, Archived, Entry, Finding
from storage.archive.proof import Proof
from storage.archive.register import BATCH_MAX, Archive

__all__ = ["BATCH_MAX", "GENESIS", "Archive", "Archived", "Entry", "Finding", "Proof"]
