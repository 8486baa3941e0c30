"""The page of a new run says what to expect, and a preview has a page like that of a run."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deployments.app import build_app
from tests.deployments.conftest import Api, Tenant

pytestmark = pytest.mark.postgres
PASSWORD = "long enough"
EVENT = (
    '{"source":"s","id":"a","type":"storage.write","customer":"acme","time":"2026-01-05T10:00:00Z","data":{"gb":"12"}}'
)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def token_of(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"')[0]


class Browser:
    """Somebody of the tenant, signed in, without JavaScript."""

    def __init__(self, http: TestClient, tenant: Tenant, role: str) -> None:
        self.http = http
        email = f"{role}-{tenant.code}@example.org"
        made = tenant.post("/v1/users", {"email": email, "password": PASSWORD, "role": role})
        assert made.status_code == 201, made.text
        form = {"email": email, "password": PASSWORD, "form_token": token_of(http.get("/sign-in").text)}
        assert http.post("/sign-in", data=form).status_code == 200

    def form(self) -> str:
        return self.http.get("/bill-runs/new?lang=en").text

    def post(self, path: str, **form: str) -> Any:
        return self.http.post(path, data={"form_token": token_of(self.form()), **form})


@pytest.fixture
def tenant(api: Api) -> Tenant:
    made = api.tenant()
    made.catalog()
    assert made.usage(EVENT).status_code == 200
    return made


@pytest.fixture
def browser(api: Api, tenant: Tenant) -> Iterator[Browser]:
    with TestClient(build_app(api.services)) as http:
        yield Browser(http, tenant, "admin")


def test_a_preview_is_begun_looked_at_and_deleted_on_pages(tenant: Tenant, browser: Browser) -> None:
    page = browser.post("/bill-run-previews", last_day="2026-01-31")
    assert page.status_code == 200, page.text
    path = page.url.path
    assert path.startswith("/bill-run-previews/")
    words = text_of(page.text)
    assert "Preview up to 31 Jan 2026 done" in words
    for shown in ("1.20", "0.23", "1.43", "no numbers are given", "DE", "basic"):
        assert shown in words, shown
    csv = browser.http.get(f"{path}/lines")
    assert csv.text.splitlines()[1].startswith("acme,1,invoice,EUR")
    assert browser.http.get(f"{path}/lines?format=parquet").content[:4] == b"PAR1"
    assert f'href="{path}"' in browser.form()
    assert tenant.get("/v1/bill-runs").json()["items"] == []
    assert browser.post(f"{path}/cancel").status_code == 409
    gone = browser.post(f"{path}/delete")
    assert (gone.url.path, path in gone.text) == ("/bill-runs/new", False)
    assert browser.http.get(path).status_code == 404
    told = [one["action"] for one in tenant.get("/v1/audit").json()["items"]]
    assert {"preview of a bill run started", "preview of a bill run deleted"} <= set(told)


def test_a_preview_looks_ahead_and_says_whom_a_rail_would_hold(tenant: Tenant, browser: Browser) -> None:
    rails = {"guard_rails": {"on": True, "limits": {"EUR": "1"}}, "collection_window": "PT48H"}
    assert tenant.put("/v1/billing-settings", rails).status_code == 200
    ahead = date.today() + timedelta(days=40)
    words = text_of(browser.post("/bill-run-previews", last_day=ahead.isoformat()).text)
    assert "1 customer held back" in words
    assert "1.43 EUR is over the limit of 1.00" in words
    assert "Usage may come until" in words
    far = browser.post("/bill-run-previews", last_day="2199-01-01")
    assert "more than 800 days after the clock" in text_of(far.text)
    missing = browser.post("/bill-run-previews", last_day="")
    assert "Choose the last day that is billed" in text_of(missing.text)


def test_the_page_of_a_new_run_says_what_to_expect_and_what_to_do_when_nothing_is_due(
    tenant: Tenant, browser: Browser
) -> None:
    words = text_of(browser.post("/bill-runs/plan", last_day="2026-01-31").text)
    assert "What to expect up to 31 Jan 2026" in words
    assert "1 of 1 is due" in words
    assert "No run has made documents yet. A preview says what they come to." in words
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-02-01"}).status_code == 202
    nothing = text_of(browser.post("/bill-runs/plan", last_day="2026-01-31").text)
    assert "Nothing is due by then that is not billed yet. The next is due by the end of 28 Feb 2026" in nothing
    again = text_of(browser.post("/bill-runs/plan", last_day="2026-02-28").text)
    assert "about 1 document" in again
    assert re.search(r"about \S*1\.43", again), again
    assert "Reckoned from the last runs (1)" in again
    assert "Choose a day that is over" in text_of(browser.post("/bill-runs/plan", last_day="2199-01-01").text)


def test_who_only_reads_sees_a_preview_and_begins_none(api: Api, tenant: Tenant, browser: Browser) -> None:
    path = browser.post("/bill-run-previews", last_day="2026-01-31").url.path
    with TestClient(build_app(api.services)) as http:
        reader = Browser(http, tenant, "viewer")
        page = http.get(path)
        assert page.status_code == 200
        assert "1.43" in text_of(page.text)
        assert 'popovertarget="delete"' not in page.text
        assert http.get("/bill-runs/new").status_code == 403
        token = token_of(http.get("/bill-runs").text)
        refused = reader.http.post("/bill-run-previews", data={"form_token": token, "last_day": "2026-01-31"})
        assert refused.status_code == 403
