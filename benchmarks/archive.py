"""The archive with many small documents: putting, finding, reading one alone, and proving all of it.

A document is 2 kB with a dozen words, put in batches of 2,000 as a bill run does. Beside it in the same run: a file and
a row for each document, made durable one by one, which is what people write today.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import numpy as np
import psycopg

from storage.archive import BATCH_MAX, Archive, Entry
from storage.object_store import LocalObjectStore
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate

DOCUMENTS = {"small": 4_000, "normal": 100_000, "long": 1_000_000}
BYTES = 2_000
CUSTOMERS = 10_000
PEER_DOCUMENTS = {"small": 200, "normal": 2_000, "long": 2_000}
LOOKUPS = 60
WORDS = ("Speicher", "Rechenzeit", "Verkehr", "Grundgebühr", "Gutschrift", "Wartung", "Lizenz", "Schulung")


def run(size: str, say: Callable[[str], None]) -> dict[str, object]:
    documents = DOCUMENTS[size]
    with tempfile.TemporaryDirectory(prefix="cb-bench-") as name:
        directory = Path(name)
        postgres = EmbeddedPostgres(directory / "pg")
        dsn = postgres.start()
        try:
            migrate(dsn)
            tenant = _tenant(dsn)
            store = LocalObjectStore(directory / "objects")
            with Database(dsn, size_max=4) as database:
                archive = Archive(database, store)
                put_s, slow = _put_all(archive, tenant, documents, say)
                looked = _look_up(archive, tenant, documents)
                began = time.perf_counter()
                proof = archive.verify(tenant)
                verify_s = time.perf_counter() - began
                assert proof.intact, proof.findings
                assert proof.entries == documents
            objects = sum(1 for _ in store.list(f"archive/{tenant}/"))
            peer = _file_and_row_each(dsn, directory / "peer", PEER_DOCUMENTS[size])
            with psycopg.connect(dsn) as connection:
                row = connection.execute(
                    "SELECT pg_total_relation_size('archive_entries') + pg_total_relation_size('archive_texts')"
                    " + pg_total_relation_size('archive_places')"
                ).fetchone()
            assert row is not None
        finally:
            postgres.stop()
    rate = documents / put_s
    say(f"peer, a file and a row each: {peer:,.0f} documents/s")
    return {
        "figure": round(rate),
        "unit": f"documents/s put, {documents:,} documents",
        "slow_down": round(slow, 2),
        **looked,
        "verify_documents_s": round(documents / verify_s),
        "objects": objects,
        "register_bytes_a_document": round(row[0] / documents),
        "file_and_row_each": round(peer),
        "ratio_file_and_row_each": round(rate / peer, 1),
        "checksum": proof.head,
    }


def document(number: int) -> Entry:
    """The document of this number; the same in every run."""
    dice = random.Random(number)
    return Entry(
        document_id=f"d{number}",
        kind="pdf",
        number=f"RE-2026-{number:07}",
        document_type="invoice",
        customer=f"K-{number % CUSTOMERS}",
        document_date=date(2026, 1, 1) + timedelta(days=number % 365),
        amount=Decimal(dice.randrange(100, 10_000_000)) / 100,
        currency="EUR",
        data=dice.randbytes(BYTES),
        text=f"Kunde {number % CUSTOMERS} {' '.join(dice.choices(WORDS, k=8))} Vorgang{number}",
    )


def _put_all(archive: Archive, tenant: str, documents: int, say: Callable[[str], None]) -> tuple[float, float]:
    """Seconds of putting, and how many times longer the last tenth took than the first."""
    waits: list[float] = []
    for first in range(0, documents, BATCH_MAX):
        batch = [document(number) for number in range(first, min(first + BATCH_MAX, documents))]
        began = time.perf_counter()
        archive.put_many(tenant, batch)
        waits.append(time.perf_counter() - began)
        if len(waits) % 50 == 0:
            say(f"{first + len(batch):,} documents")
    tenth = max(1, len(waits) // 10)
    return sum(waits), sum(waits[-tenth:]) / sum(waits[:tenth])


@dataclass(frozen=True)
class _Question:
    name: str
    ask: Callable[[int], object]


def _look_up(archive: Archive, tenant: str, documents: int) -> dict[str, float]:
    def read(number: int) -> None:
        assert archive.get(tenant, f"d{number}") == document(number).data

    def by_number(number: int) -> None:
        (found,) = archive.search(tenant, number=f"RE-2026-{number:07}")
        assert found.document_id == f"d{number}"

    def by_word(number: int) -> None:
        (found,) = archive.search(tenant, text=f"Vorgang{number}")
        assert found.document_id == f"d{number}"

    def by_customer(number: int) -> None:
        found = archive.search(tenant, customer=f"K-{number % CUSTOMERS}", limit=100)
        assert f"d{number % CUSTOMERS}" in {one.document_id for one in found}

    def by_amount(number: int) -> None:
        amount = document(number).amount
        assert archive.search(tenant, amount_min=amount, amount_max=amount)

    questions = [
        _Question("read_one", read),
        _Question("by_number", by_number),
        _Question("by_word", by_word),
        _Question("by_customer", by_customer),
        _Question("by_amount", by_amount),
    ]
    dice = random.Random(7)
    waits: dict[str, float] = {}
    for question in questions:
        seen: list[float] = []
        for _ in range(LOOKUPS):
            number = dice.randrange(documents)
            began = time.perf_counter()
            question.ask(number)
            seen.append((time.perf_counter() - began) * 1000)
        waits[f"{question.name}_p50_ms"] = round(float(np.percentile(seen, 50)), 2)
        waits[f"{question.name}_p95_ms"] = round(float(np.percentile(seen, 95)), 2)
    return waits


def _file_and_row_each(dsn: str, folder: Path, documents: int) -> float:
    """Documents a second of the plain way: write, fsync, INSERT, commit."""
    folder.mkdir()
    entries = [document(number) for number in range(documents)]
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE TABLE plain_documents (id text PRIMARY KEY, sha256 bytea NOT NULL, path text NOT NULL)"
        )
        connection.commit()
        began = time.perf_counter()
        for entry in entries:
            path = folder / entry.document_id
            with path.open("wb") as file:
                file.write(entry.data)
                file.flush()
                os.fsync(file.fileno())
            connection.execute(
                "INSERT INTO plain_documents VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (entry.document_id, hashlib.sha256(entry.data).digest(), str(path)),
            )
            connection.commit()
        waited = time.perf_counter() - began
        row = connection.execute("SELECT count(*) FROM plain_documents").fetchone()
        assert row == (documents,)
    return documents / waited


def _tenant(dsn: str) -> str:
    tenant_id = str(uuid4())
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenants (id, code, name, kind, currency, timezone, form)"
            " VALUES (%s, 'bench', 'Archive', 'live', 'EUR', 'Europe/Berlin', '{}')",
            (tenant_id,),
        )
    return tenant_id
