"""Documents a second: PDF/A-3a with the EN 16931 XML inside, checked and archived, beside WeasyPrint in the same run.

Every document is another one (number, customer, quantities), ten lines on one page with QR code and tax table. Workers
are processes, one per core, as Ray tasks are; they share one PostgreSQL and one directory with real fsync. WeasyPrint
draws the same texts of the same documents from HTML to PDF/A-3a with the XML attached, in as many processes, without
checks and archive; Chromium, where it is installed, the same HTML to a plain tagged PDF. `python -m
benchmarks.documents [--small]` prints one JSON line last.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from billing.documents import Document, Line, TaxTotal
from billing.einvoice.parties import seller_of
from pipelines.documents import FinalDocument, Issuer, checked_xml, invoice_for, render_and_archive, shared_gate
from pipelines.invoice_view import view
from storage.archive import Archive
from storage.object_store import LocalObjectStore
from storage.sql.database import Database
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate

TENANT = str(UUID(int=1))
CHROMIUM = Path("/usr/bin/chromium")
LINES = 10
CHUNK = 50
FULL, SMALL = (1_000, 20), (6, 2)  # documents with Typst, with WeasyPrint
ENTITY: dict[str, Any] = {
    "name": "Nordwind Cloud GmbH",
    "vat_id": "DE318204776",
    "legal_id": "HRB 40417",
    "court": "Amtsgericht Bremen",
    "directors": "Dr. Inken Thomsen, Jonas Falk",
    "address": {"street": "Am Kornspeicher 4", "post_code": "28217", "city": "Bremen"},
    "contact": {"name": "Lasse Brandt", "phone": "+49 421 5550 142", "email": "rechnung@nordwind.example"},
    "bank": {"name": "Weserbank Bremen", "iban": "DE02120300000000202051", "bic": "BYLADEM1001"},
}
ISSUER = Issuer(TENANT, "Europe/Berlin", "DE", ENTITY)
PERIOD = (datetime(2026, 9, 30, 22, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC))


def made(number: int) -> FinalDocument:
    """The document of this number; the same in every run."""
    lines: list[Line] = []
    for place in range(LINES):
        quantity, price = Decimal(number * 7 + place + 1) / 4, Decimal(place + 1) / 1000
        lines.append(
            Line(
                f"S-{place // 5}", f"charge-{place}", *PERIOD, quantity,
                (quantity * price).quantize(Decimal("0.01"), ROUND_HALF_UP), "S", Decimal(19),
                plan="Compute Scale", name=f"Dienst {place + 1}", unit="h", unit_price=price if place % 3 else None,
            )
        )  # fmt: skip
    net = sum((line.amount for line in lines), Decimal(0))
    tax = (net * Decimal("0.19")).quantize(Decimal("0.01"), ROUND_HALF_UP)
    code = f"K-{number}"
    document = Document(
        code, "invoice", "EUR", date(2026, 11, 1), tuple(lines), (), (TaxTotal("S", Decimal(19), net, tax),), net, tax,
        net + tax, net + tax,
    )  # fmt: skip
    customer = {
        "code": code, "name": f"Kunde {number} GmbH", "country": "DE", "vat_id": "DE241880935",
        "address": {"street": f"Hauptstraße {number}", "post_code": "20457", "city": "Hamburg"},
    }  # fmt: skip
    return FinalDocument(f"bench-{number}", f"RE-2026-{number:06}", document, customer, date(2026, 12, 1))


_archive: Archive | None = None


def open_archive(dsn: str, directory: str) -> None:
    """In each worker: its own pool and store; rules and layout are loaded before the clock runs."""
    global _archive
    _archive = Archive(Database(dsn, size_max=2), LocalObjectStore(Path(directory)))
    invoice, _ = invoice_for(made(0), ISSUER, seller_of(ENTITY, "DE"))
    checked_xml(invoice, shared_gate())


def archive_chunk(numbers: Sequence[int]) -> tuple[int, float, float, str]:
    assert _archive is not None
    started, cpu = time.perf_counter(), time.process_time()
    outcomes = render_and_archive([made(number) for number in numbers], ISSUER, _archive)
    assert all(one.state == "archived" and one.e_invoice for one in outcomes), outcomes
    hashes = hashlib.sha256("".join(one.sha256 for one in outcomes).encode()).hexdigest()
    return len(outcomes), time.perf_counter() - started, time.process_time() - cpu, hashes


def weasyprint_page(number: int) -> tuple[int, float]:
    """The same texts as a page of HTML, PDF/A-3a with the XML attached: bytes of the file, processor seconds."""
    cpu = time.process_time()
    from weasyprint import HTML, Attachment
    from weasyprint.urls import URLFetcher

    seller = seller_of(ENTITY, "DE")
    invoice, _ = invoice_for(made(number), ISSUER, seller)
    xml = checked_xml(invoice, shared_gate())
    page = HTML(
        string=as_html(view(invoice, seller, "invoice", "de")), url_fetcher=URLFetcher(allowed_protocols=("data",))
    )
    attached = Attachment(string=xml, name="factur-x.xml", relationship="Alternative")
    size = len(page.write_pdf(pdf_variant="pdf/a-3a", attachments=[attached]) or b"")
    return size, time.process_time() - cpu


def chromium_pages(numbers: Sequence[int]) -> float:
    """Seconds for the same texts and HTML as tagged PDFs of an open browser; PDF/A and the XML it cannot make."""
    from playwright.sync_api import sync_playwright

    seller = seller_of(ENTITY, "DE")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content("<p>awake</p>")
        page.pdf()
        started = time.perf_counter()
        for number in numbers:
            invoice, _ = invoice_for(made(number), ISSUER, seller)
            checked_xml(invoice, shared_gate())
            page.set_content(as_html(view(invoice, seller, "invoice", "de")))
            assert page.pdf(format="A4", tagged=True).startswith(b"%PDF")
        seconds = time.perf_counter() - started
        browser.close()
    return seconds


def as_html(d: dict[str, Any]) -> str:
    def cells(texts: Sequence[Any]) -> str:
        return "".join(f"<td>{html.escape(str(text))}</td>" for text in texts)

    def rows(table: Sequence[Sequence[Any]]) -> str:
        return "".join(f"<tr>{cells(row)}</tr>" for row in table)

    body: list[str] = []
    for group in d["groups"]:
        body.append(f"<tr><th colspan=7>{html.escape(group['name'])} {html.escape(group['note'])}</th></tr>")
        for one in group["lines"]:
            start = [one["position"], one["name"], one["period"], one["quantity"][0]]
            body.append(f"<tr>{cells([*start, one['unit'], one['price'][0], one['amount']])}</tr>")
        for label, net, _ in group["sums"]:
            body.append(f"<tr><td colspan=6>{html.escape(label)}</td>{cells([net])}</tr>")
    footer = "".join(f"<div>{'<br>'.join(map(html.escape, column))}</div>" for column in d["letterhead"]["columns"])
    return (
        f"<html lang=de><title>{d['title']}</title><style>@page{{size:A4;margin:27mm 20mm 31mm 25mm;"
        "@bottom-right{content:'Seite ' counter(page) ' von ' counter(pages)}}body{font:9pt sans-serif}"
        "table{width:100%;border-collapse:collapse}td{padding:1mm}footer{display:flex;gap:8mm;font-size:7pt}</style>"
        f"<p>{'<br>'.join(map(html.escape, d['window']))}</p>"
        f"<table>{rows([row[:2] for row in d['information']])}</table>"
        f"<h1>{html.escape(d['title'])}</h1><p>{'<br>'.join(d['intro'])}</p>"
        f"<table><thead><tr>{cells(d['columns'])}</tr></thead>{''.join(body)}</table>"
        f"<table>{rows(d['taxes']['rows'])}</table><table>{rows([*d['totals'], d['due']])}</table>"
        f"{d['payment']['qr'] or ''}<table>{rows(d['payment']['rows'])}</table><footer>{footer}</footer></html>"
    )


def measure(*, small: bool = False) -> dict[str, Any]:
    count, peer_count = SMALL if small else FULL
    workers = 1 if small else max(1, len(os.sched_getaffinity(0)))
    load = os.getloadavg()[0]
    chunk = min(CHUNK, max(1, count // workers))
    chunks = [list(range(start, min(start + chunk, count + 1))) for start in range(1, count + 1, chunk)]
    context = multiprocessing.get_context("spawn")  # Saxon must not be forked
    with tempfile.TemporaryDirectory(prefix="documents-") as directory:
        postgres = EmbeddedPostgres(Path(directory) / "pg")
        dsn = postgres.start()
        try:
            migrate(dsn)
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(
                    "INSERT INTO tenants (id, code, name, kind, currency, timezone, form)"
                    " VALUES (%s, 'bench', 'Bench', 'live', 'EUR', 'Europe/Berlin', '{}')",
                    (TENANT,),
                )
            objects = str(Path(directory) / "objects")
            with ProcessPoolExecutor(workers, context, open_archive, (dsn, objects)) as pool:
                list(pool.map(archive_chunk, [[-place - 1] for place in range(workers * 2)]))  # everybody is awake
                started = time.perf_counter()
                done = list(pool.map(archive_chunk, chunks))
                elapsed = time.perf_counter() - started
                peer_started = time.perf_counter()
                pages = list(pool.map(weasyprint_page, range(1, peer_count + 1)))
                peer_elapsed = time.perf_counter() - peer_started
                shares = [list(range(start, peer_count + 1, workers)) for start in range(1, workers + 1)]
                browsers = list(pool.map(chromium_pages, shares)) if CHROMIUM.exists() else []
            with Database(dsn, size_max=1) as database:
                proof = Archive(database, LocalObjectStore(Path(objects))).verify(TENANT)
        finally:
            postgres.stop()
    assert proof.intact, proof.findings[:3]
    assert proof.entries == 2 * (count + workers * 2)
    assert all(size for size, _ in pages)
    rate, peer_rate = count / elapsed, peer_count / peer_elapsed
    per_document = sorted(1000 * seconds / documents for documents, seconds, *_ in done)
    return {
        "figure": round(rate, 1),
        "unit": "documents/s archived (PDF/A-3a + XML)",
        "documents": count,
        "workers": workers,
        "p50_ms": round(per_document[len(per_document) // 2], 2),
        "p95_ms": round(per_document[int(len(per_document) * 0.95)], 2),
        "cpu_ms_each": round(1000 * sum(one[2] for one in done) / count, 2),
        "cpu_s": round(sum(one[2] for one in done), 2),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "ratio_weasyprint": round(rate / peer_rate, 2),
        "weasyprint_per_s": round(peer_rate, 2),
        "weasyprint_cpu_ms_each": round(1000 * sum(seconds for _, seconds in pages) / peer_count, 2),
        **_beside_chromium(rate, peer_count, browsers),
        "result": hashlib.sha256("".join(one[3] for one in done).encode()).hexdigest()[:16],
        "versions": {name: version(name) for name in ("typst", "weasyprint", "lxml", "saxonche")},
        "load_before": round(load, 2),
    }


def _beside_chromium(rate: float, count: int, seconds: Sequence[float]) -> dict[str, Any]:
    if not seconds:
        return {"chromium": f"not measured: {CHROMIUM} is not installed"}
    per_s = count / max(seconds)
    return {"ratio_chromium": round(rate / per_s, 2), "chromium_per_s": round(per_s, 2)}


def run(size: str, say: Callable[[str], None]) -> dict[str, Any]:
    """What the common runner calls."""
    say(f"{(SMALL if size == 'small' else FULL)[0]} documents of {LINES} lines, then WeasyPrint and Chromium")
    return measure(small=size == "small")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="the size that the tests run")
    print(json.dumps(measure(small=parser.parse_args(arguments).small)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
