"""Accompanying documents as files: PDF/A-3a (UA-1) and CSV, and their way into the archive.

Owns rendering and archiving; what they say is `billing/accompanying.py`, how the page reads `accompanying_view.py`,
where the platform's own figures come from `customer_documents.py`.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import msgspec

from billing.accompanying import Accompanying, Kind
from billing.einvoice.parties import Seller
from billing.einvoice.terms import places_in
from billing.errors import FieldError, InvalidInput
from pipelines.accompanying_csv import csv_of
from pipelines.accompanying_view import page_of
from pipelines.documents import BUILT_IN, draw_file
from pipelines.layout_blocks import Layout
from storage.archive import Archive, Archived, Entry

FileFormat = Literal["pdf", "csv"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
MIMES: dict[FileFormat, str] = {"pdf": "application/pdf", "csv": "text/csv"}
_SAID = msgspec.json.Encoder(order="deterministic", decimal_format="string")
_DOCUMENTS = uuid.UUID("6f1c2a5e-4a53-5b0f-9e0b-0d6c8a1f7b42")  # a name space: the same document has the same id


@dataclass(frozen=True)
class DocumentFile:
    """One file; `name` is what it is called behind a stem."""

    format: FileFormat
    name: str
    mime: str
    data: bytes


def formats_of(text: str) -> tuple[FileFormat, ...]:
    """Formats by name, with commas between them; `InvalidInput` names those that there are."""
    names = [one.strip().lower() for one in text.split(",") if one.strip()]
    unknown = [one for one in names if one not in FORMATS]
    if unknown or not names:
        detail = f"{', '.join(unknown) or 'nothing'} is no format; there are {', '.join(FORMATS)}"
        raise InvalidInput(detail, errors=[FieldError("query:format", detail)])
    return cast(tuple[FileFormat, ...], tuple(dict.fromkeys(names)))


def render_document(
    document: Accompanying,
    formats: Sequence[FileFormat] = FORMATS,
    language: str = "de",
    *,
    layout: Layout = BUILT_IN,
    seller: Seller | None = None,
    owner: str = "",
) -> list[DocumentFile]:
    """The files in the order asked for. Same input, same bytes.

    Raises `NotIssuable` for a character that no font can print, naming it and its places, and for a layout that cannot
    be drawn; `InvalidInput` for a language that there is not.
    """
    found: list[DocumentFile] = []
    for one in formats:
        data = csv_of(document) if one == "csv" else _pdf(document, language, layout, seller, owner)
        found.append(DocumentFile(one, one, MIMES[one], data))
    return found


def _pdf(document: Accompanying, language: str, layout: Layout, seller: Seller | None, owner: str) -> bytes:
    def named(letters: str, detail: str) -> list[FieldError]:
        return [FieldError(one, detail) for one in places_in(document.to_json(), letters)]

    data = page_of(document, seller or Seller(document.seller), layout.blocks, language)
    return draw_file(layout, data, owner, named)


# -- Archive -----------------------------------------------------------------------------------------------------------


def document_id(tenant_id: str, kind: Kind, number: str) -> str:
    """The same type and number of a tenant have the same id: made again it is the next version, not another one."""
    return str(uuid.uuid5(_DOCUMENTS, f"{tenant_id}/{kind}/{number}"))


def content_of(document: Accompanying, seller: Seller, language: str) -> str:
    """A hash of all that a page is drawn from but its layout."""
    return hashlib.sha256(_SAID.encode([document.to_json(), seller, language])).hexdigest()


def newest_version(archive: Archive, tenant_id: str, document_id: str) -> int:
    """The newest version of a document in the archive; 0: there is none."""
    return max((one.version for one in archive.entries(tenant_id, [document_id])), default=0)


def archive_document(
    archive: Archive, tenant_id: str, document: Accompanying, files: Sequence[DocumentFile], customer: str
) -> list[Archived]:
    """Keep the files of a document; the same again does nothing new, other content is the next version of it.

    What it is kept for is said by its type (`storage/archive/retention.py`); its day is never before that of an
    invoice that it accompanies, so it is kept at least as long.
    """
    own = document_id(tenant_id, document.type, document.number)
    earlier = archive.entries(tenant_id, [own])
    newest = max((one.version for one in earlier), default=0)
    version = newest or 1
    entries = [_entry(document, one, own, customer, version) for one in files]
    kept = {one.kind: one.sha256 for one in earlier if one.version == newest}
    if newest and any(kept.get(one.kind) != hashlib.sha256(one.data).hexdigest() for one in entries):
        entries = [_entry(document, one, own, customer, newest + 1) for one in files]
    return archive.put_many(tenant_id, entries)


def _entry(document: Accompanying, file: DocumentFile, own: str, customer: str, version: int) -> Entry:
    return Entry(
        document_id=own,
        kind=file.format,
        number=document.number,
        document_type=document.type,
        customer=customer,
        document_date=document.issued_on,
        amount=document.amount,
        currency=document.currency or "",
        data=file.data,
        mime=file.mime,
        file_name=f"{stem_of(document.number)}.{file.name}",
        version=version,
        text=_words(document),
    )


def stem_of(number: str) -> str:
    """A document's number as the stem of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", number).strip("-.") or "document"


def _words(document: Accompanying) -> str:
    """What the archive finds it by: who, what for, and which invoices."""
    said = [document.buyer.name, document.buyer.address.city or "", *(one.number for one in document.refers_to)]
    said += [row.meter for row in document.usage]
    said += [line.name for line in document.lines]
    said += [entry.number or "" for entry in document.statement.entries] if document.statement else []
    said += [entry.number or "" for entry in document.credit.entries] if document.credit else []
    said += [item.number for item in document.reminder.items] if document.reminder else []
    return " ".join(dict.fromkeys(one for one in said if one))
