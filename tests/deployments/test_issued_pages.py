"""The page of an invoice that was made elsewhere: what it is, its files, and nothing that leads nowhere."""

from __future__ import annotations

import html
import re

import pytest
from fastapi.testclient import TestClient

from deployments.app import build_app
from deployments.front.page import path_of
from pipelines.demo_generator import TENANT
from tests.deployments.conftest import Api
from tests.deployments.test_invoice_issuing import example

pytestmark = pytest.mark.postgres
PASSWORD = "a long sentence of some words"


def words(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_page_says_that_it_was_made_elsewhere_and_offers_what_there_is(api: Api) -> None:
    tenant = api.tenant(kind="test", test_clock="2026-12-15", legal_entity=TENANT["legal_entity"])
    form = {"email": f"{tenant.code}@example.org", "name": "Ann", "password": PASSWORD, "role": "billing"}
    assert tenant.post("/v1/users", form).status_code == 201
    totals = {**example()["totals"], "prepaid": "87.27", "due": "400.00"}
    made = tenant.post("/v1/invoices", example(totals=totals)).json()
    path = path_of("invoices", made["number"])
    with TestClient(build_app(api.services)) as browser:
        page = browser.get("/sign-in").text
        token = page.split('name="form_token" value="')[1].split('"')[0]
        browser.post("/sign-in", data={"email": form["email"], "password": PASSWORD, "form_token": token})
        shown = browser.get(path).text
        said = words(shown)
        for text in ("RE-2026-000001", "made elsewhere", "Made elsewhere, numbered here", "paid before", "400.00",
                     "Requests above 1,000,000", "Hafenkontor Logistik GmbH, Hamburg"):  # fmt: skip
            assert text in said, text
        for link in ("/credit", "/customers/", "explain="):
            assert link not in shown, f"{link} leads nowhere"
        assert browser.get(f"{path}/pdf").content.startswith(b"%PDF-")
        assert "RE-2026-000001" in words(browser.get("/invoices").text)
        assert "RE-2026-000001" in words(browser.get("/archive?q=RE-2026").text)
        assert browser.get(f"{path}?explain=1").status_code == 200
        assert browser.get(f"{path}?format=json").json()["number"] == "RE-2026-000001"
        for other in (f"{path}/credit", f"{path}/lines/1"):
            assert browser.get(other).status_code in (404, 422), other
        german = browser.get(path, headers={"Accept-Language": "de"}).text
    assert "anderswo erstellt" in words(german)
    assert ("Bereits gezahlt" in words(german), "Aus Guthaben" in words(german)) == (True, False)
