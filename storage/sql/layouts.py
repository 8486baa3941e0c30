"""Layouts of documents by tenant: drafts, published versions, which one is in use, which one a document was made with.

Owns rows; what a form may say is `pipelines/layout_blocks.py`. Versions, choices and pins are only ever added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from billing.errors import Conflict, FieldError, InvalidInput, NotFound, PreconditionFailed
from storage.sql.database import Connection

_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
LAYOUTS_MAX, VERSIONS_MAX = 200, 10_000
BUILT_IN_VERSION = 2  # of the platform's own page; counted up when it looks different


@dataclass(frozen=True)
class Used:
    """A version that documents are drawn with; `form` None: the built-in layout."""

    code: str | None
    version: int
    form: Mapping[str, Any] | None


BUILT_IN = Used(None, BUILT_IN_VERSION, None)


def code_of(text: str) -> str:
    """The code if it is one; `InvalidInput` says what one looks like."""
    if not _CODE.fullmatch(text):
        detail = "a layout's code has small letters, digits and dashes, 64 at most"
        raise InvalidInput(detail, errors=[FieldError("path:code", detail)])
    return text


def put(
    connection: Connection,
    tenant_id: str,
    code: str,
    document_type: str,
    name: str,
    form: Mapping[str, Any],
    *,
    actor: str,
    now: datetime,
    expected: int | None = None,
) -> int:
    """Keep a draft, new or changed; its revision. PreconditionFailed if it is no longer at `expected`."""
    count = connection.execute("SELECT count(*) AS n FROM layouts WHERE code <> %s", (code,)).fetchone()
    if count is not None and count["n"] >= LAYOUTS_MAX:
        raise Conflict(f"there are {LAYOUTS_MAX} layouts already; change one of them")
    row = connection.execute(
        "INSERT INTO layouts AS l (tenant_id, code, document_type, name, draft, changed_at, changed_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant_id, code) DO UPDATE SET name = excluded.name,"
        " draft = excluded.draft, changed_at = excluded.changed_at, changed_by = excluded.changed_by,"
        " revision = l.revision + 1"
        " WHERE l.document_type = excluded.document_type AND (%s::int IS NULL OR l.revision = %s) RETURNING revision",
        (UUID(tenant_id), code, document_type, name, Jsonb(dict(form)), now, actor, expected, expected),
    ).fetchone()
    if row is not None:
        return int(row["revision"])
    found = get(connection, code)
    if found["document_type"] != document_type:
        raise Conflict(f"the layout {code!r} is one of {found['document_type']}; another type needs another code")
    raise PreconditionFailed(f"the draft of layout {code!r} was changed in the meantime: read it again")


def get(connection: Connection, code: str) -> dict[str, Any]:
    row = connection.execute(
        "SELECT code, document_type, name, draft, revision, changed_at, changed_by FROM layouts WHERE code = %s",
        (code,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no layout {code!r}")
    return dict(row)


def page(connection: Connection, *, after: str | None = None, limit: int = LAYOUTS_MAX) -> list[dict[str, Any]]:
    """Layouts by code, each with its newest version and the version that is in use (null: none)."""
    rows = connection.execute(
        "SELECT l.code, l.document_type, l.name, l.revision, l.changed_at, l.changed_by,"
        " l.draft ->> 'engine' AS engine,"
        " (SELECT max(v.version) FROM layout_versions v WHERE v.tenant_id = l.tenant_id AND v.code = l.code) AS newest,"
        " (SELECT c.version FROM (SELECT code, version FROM layout_choices c WHERE c.tenant_id = l.tenant_id AND"
        " c.document_type = l.document_type ORDER BY c.id DESC LIMIT 1) c WHERE c.code = l.code) AS in_use"
        " FROM layouts l WHERE l.code > %s ORDER BY l.code LIMIT %s",
        (after or "", limit),
    ).fetchall()
    return [dict(row) for row in rows]


def publish(
    connection: Connection,
    tenant_id: str,
    code: str,
    *,
    note: str,
    actor: str,
    now: datetime,
    expected: int | None = None,
) -> int:
    """Make the draft the next version, which never changes; its number. A draft that is the newest version stays it."""
    row = connection.execute("SELECT draft, revision FROM layouts WHERE code = %s FOR UPDATE", (code,)).fetchone()
    if row is None:
        raise NotFound(f"there is no layout {code!r}")
    if expected is not None and row["revision"] != expected:
        raise PreconditionFailed(f"the draft of layout {code!r} was changed in the meantime: read it again")
    newest = connection.execute(
        "SELECT version, form FROM layout_versions WHERE code = %s ORDER BY version DESC LIMIT 1", (code,)
    ).fetchone()
    if newest is not None and newest["form"] == row["draft"]:
        return int(newest["version"])
    version = 1 if newest is None else int(newest["version"]) + 1
    if version > VERSIONS_MAX:
        raise Conflict(f"layout {code!r} has {VERSIONS_MAX} versions; make a new one")
    connection.execute(
        "INSERT INTO layout_versions (tenant_id, code, version, form, note, published_at, published_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (UUID(tenant_id), code, version, Jsonb(row["draft"]), note, now, actor),
    )
    return version


def versions(connection: Connection, code: str, *, after: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest first, without their forms."""
    rows = connection.execute(
        "SELECT version, note, published_at, published_by, form ->> 'engine' AS engine FROM layout_versions"
        " WHERE code = %s AND (%s::int IS NULL OR version < %s) ORDER BY version DESC LIMIT %s",
        (code, after, after, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def version(connection: Connection, code: str, number: int) -> dict[str, Any]:
    row = connection.execute(
        "SELECT code, version, form, note, published_at, published_by FROM layout_versions"
        " WHERE code = %s AND version = %s",
        (code, number),
    ).fetchone()
    if row is None:
        raise NotFound(f"layout {code!r} has no version {number}")
    return dict(row)


def choose(
    connection: Connection, tenant_id: str, document_type: str, code: str | None, number: int | None, *,
    actor: str, now: datetime,
) -> None:  # fmt: skip
    """From now on documents of this type are drawn with this version; None: with the built-in layout again."""
    if code is not None:
        found = get(connection, code)
        version(connection, code, number or 0)
        if found["document_type"] != document_type:
            raise InvalidInput(f"layout {code!r} is one of {found['document_type']}, not of {document_type}")
    connection.execute(
        "INSERT INTO layout_choices (tenant_id, document_type, code, version, chosen_at, chosen_by)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (UUID(tenant_id), document_type, code, number if code is not None else None, now, actor),
    )


def in_use(connection: Connection, document_type: str) -> Used:
    """The version that new documents of this type are drawn with."""
    row = connection.execute(
        "SELECT c.code, c.version, v.form FROM (SELECT * FROM layout_choices WHERE document_type = %s"
        " ORDER BY id DESC LIMIT 1) c JOIN layout_versions v ON v.tenant_id = c.tenant_id AND v.code = c.code"
        " AND v.version = c.version",
        (document_type,),
    ).fetchone()
    return BUILT_IN if row is None else _used(row)


def choices(connection: Connection, document_type: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """What was in use since when, the newest first."""
    rows = connection.execute(
        "SELECT document_type, code, version, chosen_at, chosen_by FROM layout_choices"
        " WHERE %s::text IS NULL OR document_type = %s ORDER BY id DESC LIMIT %s",
        (document_type, document_type, limit),
    ).fetchall()
    return [dict(row) for row in rows]


def pin(connection: Connection, tenant_id: str, documents: Iterable[tuple[str, str]]) -> dict[str, Used]:
    """Note for documents (id, type) what they are drawn with, once for all; what each has, old or new."""
    wanted = list(documents)
    used = {kind: in_use(connection, kind) for kind in {kind for _, kind in wanted}}
    ids = [UUID(one) for one, _ in wanted]
    connection.execute(
        "INSERT INTO document_layouts (tenant_id, document_id, code, version)"
        " SELECT %s, * FROM unnest(%s::uuid[], %s::text[], %s::int[]) ON CONFLICT DO NOTHING",
        (UUID(tenant_id), ids, [used[kind].code for _, kind in wanted], [used[kind].version for _, kind in wanted]),
    )
    rows = connection.execute(
        "SELECT DISTINCT ON (d.document_id) d.document_id, d.code, d.version, v.form FROM document_layouts d"
        " LEFT JOIN layout_versions v ON v.tenant_id = d.tenant_id AND v.code = d.code AND v.version = d.version"
        " WHERE d.document_id = ANY(%s) ORDER BY d.document_id, d.place DESC",
        (ids,),
    ).fetchall()
    return {str(row["document_id"]): _used(row) for row in rows}


def pin_again(connection: Connection, tenant_id: str, document_id: str, kind: str) -> None:
    """A document that could not be made is drawn with the version in use now: the one that it has may be the reason.

    Only while nothing of it is archived. Without a pin there is nothing to do: the next try makes one.
    """
    last = _noted(connection, document_id, None)
    if last is not None:
        _add(connection, tenant_id, document_id, last, in_use(connection, kind), last["edition"], last["content"])


def note(connection: Connection, tenant_id: str, document_id: str, kind: str, content: str, archived: int) -> Used:
    """Note what a document that may be made again is drawn with; `archived` is its newest version in the archive.

    The same `content` (a hash of what is drawn) as noted last keeps that layout: after a crash, and whenever the same
    is made again, it has the same bytes. Other content is the next edition, with the version in use now; so is the
    same content once the platform's own page has changed.
    """
    # One after the other: two at once would note two layouts for one edition.
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (document_id,))
    key = f"{content}/{BUILT_IN_VERSION}"
    last = _noted(connection, document_id, None)
    if last is not None and last["content"] == key:
        return _used(last)
    used = in_use(connection, kind)
    _add(connection, tenant_id, document_id, last, used, archived + 1, key)
    return used


def free(connection: Connection, tenant_id: str, document_id: str, archived: int) -> None:
    """What was noted could not be drawn: unless it is in the archive, the next try takes the version in use then."""
    last = _noted(connection, document_id, None)
    if last is not None and last["edition"] > archived and last["content"]:
        _add(connection, tenant_id, document_id, last, _used(last), last["edition"], "")


def _add(
    connection: Connection, tenant_id: str, document_id: str, last: dict[str, Any] | None, used: Used, edition: int,
    content: str,
) -> None:  # fmt: skip
    connection.execute(
        "INSERT INTO document_layouts (tenant_id, document_id, code, version, place, edition, content)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (UUID(tenant_id), UUID(document_id), used.code, used.version, last["place"] + 1 if last else 1, edition,
         content),
    )  # fmt: skip


def of_document(connection: Connection, document_id: str, edition: int | None = None) -> Used | None:
    """What a document (of several editions: that one, or the newest) is drawn with; None: nothing is noted yet."""
    row = _noted(connection, document_id, edition)
    return None if row is None else _used(row)


def _noted(connection: Connection, document_id: str, edition: int | None) -> dict[str, Any] | None:
    row = connection.execute(
        "SELECT d.code, d.version, d.place, d.edition, d.content, v.form FROM document_layouts d"
        " LEFT JOIN layout_versions v ON v.tenant_id = d.tenant_id AND v.code = d.code AND v.version = d.version"
        " WHERE d.document_id = %s AND (%s::int IS NULL OR d.edition <= %s) ORDER BY d.place DESC LIMIT 1",
        (UUID(document_id), edition, edition),
    ).fetchone()
    return None if row is None else dict(row)


def _used(row: Mapping[str, Any]) -> Used:
    return Used(row["code"], int(row["version"]), row["form"])
