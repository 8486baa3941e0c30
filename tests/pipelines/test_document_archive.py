"""A chunk of finalised documents on a real database and a real directory: archived, parked, resumed, cut off."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pypdf
import pytest
from invoice_samples import ISSUER, PDF_ONLY, SAMPLES, TENANT, document, final, line

from billing.errors import Unavailable
from pipelines import documents as making
from pipelines.documents import Outcome, render_and_archive
from pipelines.invoice_rules import ShapeGate
from pipelines.stencils import Stencils
from storage.archive import Archive, Entry
from storage.object_store import LocalObjectStore, StoreUnavailable
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("documents") / "pg")
    dsn = postgres.start()
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenants (id, code, name, kind, currency, timezone, form)"
            " VALUES (%s, 'nordwind', 'Nordwind', 'live', 'EUR', 'Europe/Berlin', '{}')",
            (TENANT,),
        )
    with Database(dsn, size_max=4) as database:
        yield database
    postgres.stop()


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "objects")


@pytest.fixture(scope="module")
def gate() -> ShapeGate:
    return ShapeGate()


def states(outcomes: list[Outcome]) -> list[tuple[str, bool]]:
    return [(one.state, one.e_invoice) for one in outcomes]


def test_good_documents_are_archived_beside_bad_ones_that_are_parked_with_a_reason(
    database: Database, store: LocalObjectStore, gate: ShapeGate, tmp_path: Path
) -> None:
    archive = Archive(database, store)
    wrong_sum = document([line("10.00")])
    documents = [
        SAMPLES["invoice"](),
        final(document([line("1.00")]), "RE-1", {"name": "\U00010000"}),
        PDF_ONLY["dinar"](),
        final(replace(wrong_sum, gross=wrong_sum.gross + 1), "RE-2"),
        final(document([line("1.00", tax_category="AE", percent="0")]), "RE-3", {"vat_id": None}),
        final(document([line("1.00"), line("1.00", tax_category="O", percent="0")]), "RE-4"),
        SAMPLES["credit-note"](),
    ]
    outcomes = render_and_archive(documents, ISSUER, archive, gate=gate)
    assert states(outcomes) == [
        ("archived", True), ("parked", False), ("archived", False), ("parked", False), ("parked", False),
        ("parked", False), ("archived", True),
    ]  # fmt: skip
    reasons = [one.reason for one in outcomes if one.state == "parked"]
    assert "\U00010000" in reasons[0]
    assert reasons[1].startswith("BR-CO-15: ")
    assert reasons[2].startswith("BR-AE-02: ")
    assert "BR-O-" in reasons[3]
    pdf = archive.get(TENANT, documents[0].document_id)
    path = tmp_path / "invoice.pdf"
    path.write_bytes(pdf)
    assert pypdf.PdfReader(path).attachments["factur-x.xml"] == [archive.get(TENANT, documents[0].document_id, "xml")]
    assert archive.verify(TENANT).intact

    # The same again does nothing; the parked ones are tried again, and go through once their data are right.
    entries = archive.verify(TENANT).entries
    again = render_and_archive(documents, ISSUER, archive, gate=gate)
    assert again == outcomes
    assert archive.verify(TENANT).entries == entries
    mended = replace(documents[4], customer={**documents[4].customer, "vat_id": "FR40303265045"})
    (outcome,) = render_and_archive([mended], ISSUER, archive, gate=gate)
    assert outcome.state == "archived"


@pytest.mark.parametrize("step", ["before the pack", "after the pack"])
def test_a_chunk_cut_off_around_its_pack_ends_with_the_same_archive(
    step: str, database: Database, store: LocalObjectStore, gate: ShapeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivors = step.split()[0]
    documents = [
        final(document([line(f"{number}.00")]), f"CUT-{survivors}-{number}", document_id=f"cut-{survivors}-{number}")
        for number in range(1, 4)
    ]
    archive = Archive(database, store)
    create = store.create

    def fails(key: str, data: bytes) -> bool:
        if step == "after the pack":
            create(key, data)
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(store, "create", fails)
    with pytest.raises(Unavailable):
        render_and_archive(documents, ISSUER, archive, gate=gate)
    monkeypatch.undo()
    assert archive.entries(TENANT, [one.document_id for one in documents]) == []
    outcomes = render_and_archive(documents, ISSUER, archive, gate=gate)
    assert states(outcomes) == [("archived", True)] * 3
    kept = archive.entries(TENANT, [one.document_id for one in documents])
    assert [one.kind for one in kept] == ["xml", "pdf"] * 3
    assert not [one for one in archive.verify(TENANT).findings if one.kind in ("added", "changed")]


class PanicException(BaseException):
    """As a library written in Rust raises it: no Exception."""


@pytest.mark.parametrize("fault", [AssertionError("a bug"), pypdf.errors.PdfReadError("odd"), PanicException("panic")])
def test_a_fault_of_ours_in_one_document_parks_it_with_the_fault_and_is_logged(
    fault: BaseException, database: Database, store: LocalObjectStore, gate: ShapeGate,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    drawn, name = making._drawn, f"ODD-{type(fault).__name__}"

    def odd(invoice: Any, *rest: Any) -> bytes:
        if invoice.number == f"{name}-2":
            raise fault
        return drawn(invoice, *rest)

    monkeypatch.setattr(making, "_drawn", odd)
    outcomes = render_and_archive(three(name), ISSUER, Archive(database, store), gate=gate)
    assert states(outcomes) == [("archived", True), ("parked", False), ("archived", True)]
    assert outcomes[1].reason == f"{type(fault).__name__}: {fault}"
    (logged,) = caplog.records
    assert f"{name}-2" in logged.message
    assert logged.exc_info is not None, "the log has the traceback"
    assert logged.exc_info[1] is fault


def test_words_of_one_document_that_cannot_be_shaped_park_it_alone(
    database: Database, store: LocalObjectStore, gate: ShapeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Stencils.learn

    def odd(self: Stencils, pages: Any) -> None:
        assert all("WORD-2" not in str(data) for data, _ in pages), "cannot be shaped"
        learn(self, pages)

    monkeypatch.setattr(Stencils, "learn", odd)
    outcomes = render_and_archive(three("WORD"), ISSUER, Archive(database, store), gate=gate)
    assert states(outcomes) == [("archived", True), ("parked", False), ("archived", True)]
    assert "cannot be shaped" in outcomes[1].reason


def test_a_document_that_the_archive_refuses_is_parked_alone(
    database: Database, store: LocalObjectStore, gate: ShapeGate
) -> None:
    archive = Archive(database, store)
    documents = three("OTHER")
    other = Entry(
        documents[1].document_id, "xml", "OTHER-2", "invoice", "K", date(2026, 11, 1), Decimal(1), "EUR", b"x"
    )
    archive.put(TENANT, other)
    outcomes = render_and_archive(documents, ISSUER, archive, gate=gate)
    assert [one.state for one in outcomes] == ["archived", "parked", "archived"]
    assert "archived with other bytes" in outcomes[1].reason


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "no space left"), MemoryError()])
def test_what_is_wrong_with_the_machine_parks_nothing(
    fault: Exception, database: Database, store: LocalObjectStore, gate: ShapeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> bytes:
        raise fault

    monkeypatch.setattr(making, "_drawn", away)
    with pytest.raises(type(fault)):
        render_and_archive(three(f"FULL-{type(fault).__name__}"), ISSUER, Archive(database, store), gate=gate)


def three(name: str) -> list[making.FinalDocument]:
    return [final(document([line(f"{n}.00")]), f"{name}-{n}", document_id=f"{name}-{n}") for n in (1, 2, 3)]
