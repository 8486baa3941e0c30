"""Sealing: the tail of all lanes rewritten into few files in which a tenant's rows lie together.

Makes reading fast, decides nothing: the lanes stay the truth. Two sealers at once do no harm:
who loses the manifest's number finds the other's seal there and drops its own files as orphans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import Enum

import polars as pl

from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.usage_log.manifest import Manifest, ManifestChain, SealedFile
from storage.usage_log.reader import Cut, UsageLogReader
from storage.usage_log.sealed_files import known_reads, write_sealed

ROWS_MAX = 2_000_000  # of one seal: bounds its memory at about 0.6 GB
HURRY = 16  # times the length at which a tail is sealed
TAIL_NUMBERS_MAX = 256  # segments that a reader opens at most, beside those of the last minute


def seal(store: ObjectStore, up_to: Cut, *, rows_max: int = ROWS_MAX) -> Manifest:
    """Seal what lies at or below a cut and is not sealed yet, in steps of bounded size; returns the last entry."""
    chain, reader, masters = ManifestChain(store), UsageLogReader(store), MasterChain(store)
    manifest = chain.newest()
    for step in _steps(reader, manifest, up_to, rows_max):
        before = Cut(manifest.sealed)
        frames = list(reader.scan_all(step, since=before))
        files: list[SealedFile] = []
        if frames:
            rows = pl.concat(frames)
            frames.clear()
            files += write_sealed(store, rows, known_reads(masters, rows["tenant"].unique().to_list()))
        base_sealed = dict(manifest.sealed)

        def change(
            base: Manifest, *, step: Cut = step, files: list[SealedFile] = files, known: dict[int, int] = base_sealed
        ) -> Manifest | None:
            if dict(base.sealed) != known:
                return None  # another sealer was faster
            # Never lower: what another sealer covered is in its files already and would be read twice.
            reached = {lane: max(base.sealed_to(lane), number) for lane, number in step.positions.items()}
            return replace(base, sealed={**base.sealed, **reached}, files=(*base.files, *files))

        manifest = chain.append(change)
        if any(manifest.sealed_to(lane) < number for lane, number in step.positions.items()):
            break  # the other sealer's seal is below ours: the next call goes on from there
    return manifest


class TailState(Enum):
    SHORT = "short"
    LONG = "long"  # it is to be sealed
    TOO_LONG = "too long"  # sealing may stand back behind nothing any more


def state_of_tail(store: ObjectStore, *, numbers: int = TAIL_NUMBERS_MAX) -> TailState:
    """How many segments readers have to open: what they pay for is the objects, hardly the rows in them."""
    manifest = ManifestChain(store).newest()
    end = UsageLogReader(store).now()
    open_ = sum(max(0, number - manifest.sealed_to(lane)) for lane, number in end.positions.items())
    if open_ < numbers:
        return TailState.SHORT
    return TailState.LONG if open_ < numbers * HURRY else TailState.TOO_LONG


def tail_rows(store: ObjectStore, cut: Cut) -> int:
    """How many rows a reader of this cut takes from segments instead of sealed files."""
    manifest = ManifestChain(store).newest()
    return sum(rows for _, _, rows in UsageLogReader(store).row_counts(cut, since=Cut(manifest.sealed)))


def _steps(reader: UsageLogReader, manifest: Manifest, up_to: Cut, rows_max: int) -> Iterator[Cut]:
    """Cuts between what is sealed and `up_to`, each at most `rows_max` rows (or one number) above the one before."""
    reached = {lane: manifest.sealed_to(lane) for lane in up_to.positions}
    rows = 0
    for lane, number, count in reader.row_counts(up_to, since=Cut(manifest.sealed)):
        if rows and rows + count > rows_max:
            yield Cut(dict(reached))
            rows = 0
        reached[lane] = number
        rows += count
    if any(reached[lane] > manifest.sealed_to(lane) for lane in reached):
        yield Cut(dict(reached))
