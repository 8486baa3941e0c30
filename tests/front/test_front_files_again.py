"""A document that could not be made, in the browser: told on the first page, its run and its own, and made again."""

from __future__ import annotations

import html
import re

import pytest
from platform_under_test import READER, Platform, token_of

from deployments.front.page import path_of
from storage.archive import Archive

pytestmark = pytest.mark.postgres
REASON = "BR-AE-02: reverse charge needs the buyer's VAT id or register number"


def words(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_a_document_that_could_not_be_made_is_told_and_made_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with platform.services.database.owner(platform.tenant_id) as connection:
        row = connection.execute(
            "UPDATE document_files f SET state = 'parked', reason = %s FROM invoices i WHERE i.id = f.invoice_id"
            " AND i.tenant_id = f.tenant_id AND i.number = (SELECT max(number) FROM invoices WHERE tenant_id = %s"
            " AND run_id IS NOT NULL) AND i.tenant_id = %s RETURNING i.number, i.run_id",
            (REASON, platform.tenant_id, platform.tenant_id),
        ).fetchone()
    assert row is not None
    number, path = row["number"], path_of("invoices", row["number"])
    client, reader = platform.client(), platform.client(READER)
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "entries", lambda *_: [])  # as if nothing of it were archived
        page = client.get(path).text
        seen = reader.get(path).text
    assert REASON in words(page)
    assert "Make the document again" in page
    assert REASON in words(seen)
    assert "Make the document again" not in seen, "who may only read is told, too"
    home = client.get("/").text
    assert "1 document could not be made" in words(home)
    assert 'href="/invoices?files=parked"' in home
    listed = words(client.get("/invoices?files=parked").text)
    assert number in listed
    assert "Documents that could not be made" in listed
    run = words(client.get(path_of("bill-runs", str(row["run_id"]))).text)
    assert (number in run, REASON in run) == (True, True)
    token = token_of(page)
    assert reader.post(f"{path}/files", data={"form_token": token_of(seen)}).status_code == 403
    assert client.post(f"{path}/files", data={"form_token": "x"}).status_code == 403
    again = client.post(f"{path}/files", data={"form_token": token})
    assert again.status_code == 200
    assert REASON not in words(again.text)
    assert "Open the PDF" in again.text
    assert "could not be made" not in words(client.get("/").text)
