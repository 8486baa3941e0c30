"""A scenario against a running platform: the same file through the REST API, in a fresh test tenant of its own.

Owns which route a step is, and how answers become the plain facts that `billing/scenario_compare.py` compares. Nothing
is decided here and nothing is looked up elsewhere: what a scenario needs, a user of the API can see. Each step is done
when its answer is there, and names the change of master data that the next one must have seen; so it is the same at
every run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from billing.errors import BillingError, FieldError, InvalidInput, Unavailable
from billing.money import decimal_text
from billing.price_preview import PricePreview
from billing.scenario_compare import Difference, play
from billing.scenario_form import EPOCH, Scenario, Step, moved, read_scenario
from billing.scenario_prices import PriceCase, check_prices
from cluster.client import Client, path_part

EVENTS_PER_REQUEST = 10_000
RUN_WAIT_S = 600.0
ZERO = Decimal(0)
# Steps that make or change a thing with a code, and where it is; the others are events in a contract's life.
RESOURCES = {"tax_code": "tax-codes", "meter": "meters", "customer": "customers", "budget": "budgets"}
EVENTS_OF_CONTRACTS = {
    "subscribe": "/v1/subscriptions",
    "ad_hoc": "/v1/ad-hoc-charges",
    "top_up": "/v1/top-ups",
    "add_on": "/v1/subscriptions/add-on",
    "remove_add_on": "/v1/subscriptions/remove-add-on",
    "documents": "/v1/document-setting",
    "settings": "/v1/tenant-settings",
    "references": "/v1/subscriptions/references",
    **{kind: f"/v1/subscriptions/{kind}" for kind in ("change", "quantity", "override", "cancel", "pause", "resume")},
}


@dataclass(frozen=True)
class TestTenant:
    """A tenant that was made for one scenario."""

    code: str
    key: str
    key_id: str


@dataclass
class Platform:
    """A running platform, as far as scenarios need it: a client with a platform key, and how to make others."""

    url: str
    admin: Client
    http: Any = None  # of an application in this process; else each client connects to `url`

    @classmethod
    def at(cls, url: str, key: str) -> Platform:
        """Connect, and see that the key may make tenants. NotAuthenticated, NotAllowed, Unavailable say why not."""
        try:
            platform = cls(url.rstrip("/"), Client(url, key, deadline_s=5.0))
            answer = platform.admin.get("/v1/tenants", limit=1)
        except (ValueError, httpx.InvalidURL) as error:  # no JSON, or no address
            raise InvalidInput(f"{url}: {error}") from error
        if not isinstance(answer, dict) or "items" not in answer:
            raise InvalidInput(f"{url} does not list tenants")
        return platform

    def client(self, key: str) -> Client:
        return Client(self.url, key, http=self.http)

    def make_tenant(self, scenario: str, form: Mapping[str, Any], clock: datetime) -> TestTenant:
        """A test tenant whose clock stands at `clock`; its code is new at every run."""
        start = "".join(sign if sign.isalnum() else "-" for sign in scenario.lower())[:40].strip("-")
        code = f"scenario-{start}-{uuid4().hex[:12]}"
        body = {
            **form,
            "code": code,
            "name": f"Scenario {scenario}"[:256] if scenario.isprintable() else code,
            "kind": "test",
            "generated": True,
            "test_clock": clock.isoformat(),
        }
        made = self.admin.post("/v1/tenants", body)
        return TestTenant(code, made["key"], made["key_id"])


def check_scenario_at(form: object, platform: Platform, keep: bool = False) -> tuple[list[Difference], TestTenant]:
    """Run a scenario over REST and compare. Without `keep` the tenant's key is ended: nobody can use it any more.

    Raises InvalidInput (with places in the file), before anything is sent where the file itself tells.
    """
    scenario = read_scenario(form)
    first = min(
        [*(step.at for step in scenario.timeline[:1]), *(look.at for look in scenario.looks[:1])], default=EPOCH
    )
    tenant = platform.make_tenant(scenario.name, scenario.tenant, first)
    with platform.client(tenant.key) as client:
        try:
            player = RestPlayer(client, scenario, first)
            player.set_up()
            return play(scenario, player), tenant
        finally:
            if not keep:
                client.delete(f"/v1/keys/{tenant.key_id}")


def check_prices_at(form: object, platform: Platform) -> list[Difference]:
    """A price file through POST /v1/prices/preview, all of it in one test tenant."""
    tenant = platform.make_tenant("prices", {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}, EPOCH)
    with platform.client(tenant.key) as client:

        def price(case: PriceCase) -> PricePreview:
            with at_place(case.place, ""):
                answer = client.post("/v1/prices/preview", case.form)
            keys = ("amount", "exact", "quantity", "currency")
            return PricePreview(*(answer[key] for key in keys), tiers=tuple(answer["tiers"]))

        try:
            return check_prices(form, price)
        finally:
            client.delete(f"/v1/keys/{tenant.key_id}")


class at_place:
    """Errors of a request, with their pointers at the place in the file."""

    def __init__(self, place: str, prefix: str) -> None:
        self._place, self._prefix = place, prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, BillingError) or error.retryable:
            return
        if error.errors:
            here = self._place + self._prefix
            fields = [FieldError(f"{here}{one.pointer}", one.detail) for one in error.errors]
            raise InvalidInput(f"{fields[0].pointer}: {fields[0].detail}", errors=fields) from error
        if error.status in (404, 409, 422):
            field = FieldError(f"{self._place}{self._prefix}", error.detail)
            raise InvalidInput(f"{field.pointer}: {field.detail}", errors=[field]) from error


class RestPlayer:
    """Plays one scenario through the API of a platform (billing.scenario_compare.Player)."""

    def __init__(self, client: Client, scenario: Scenario, now: datetime) -> None:
        self._client = client
        self._scenario = scenario
        self._now = now
        self._sent: dict[tuple[str, str], int] = {}  # events in the order sent
        self._counts = {"accepted": 0, "duplicates": 0, "suspense": 0}

    def set_up(self) -> None:
        """What the head of the file defines. It counts since ever, as in process."""
        for step in self._scenario.setup:
            with at_place(step.place, ""):
                self._define(step.kind, step.form, EPOCH)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def move(self, to: datetime) -> None:
        if to > self._now:
            self._client.post("/v1/test-clock/advance", {"to": to.isoformat()})
            self._now = to

    def step(self, step: Step) -> Mapping[str, Any]:
        of_use = {
            "usage": self._usage,
            "correct": self._correct,
            "credit_note": self._credit_note,
            "reserve": self._reserve,
            "commit": self._commit,
            "release": self._release,
            "bill_run": self._bill_run,
        }
        with at_place(step.place, f"/{step.kind}" + ("/plan" if step.kind == "publish" else "")):
            if step.kind in of_use:
                return of_use[step.kind](step) or {}
            self._define(step.kind, step.form, step.at)
        return {}

    def _define(self, kind: str, form: Any, at: datetime) -> None:
        moment = at.isoformat()
        if kind in RESOURCES:
            self._client.put(f"/v1/{RESOURCES[kind]}/{path_part(form['code'])}", form, at=moment)
        elif kind == "publish":
            self._client.post("/v1/plans", form["plan"], at=moment)
        elif kind in EVENTS_OF_CONTRACTS:
            self._client.post(EVENTS_OF_CONTRACTS[kind], form, at=moment)
        else:
            self._client.steps([{"at": moment, kind: form}])

    def _usage(self, step: Step) -> None:
        for start in range(0, len(step.read), EVENTS_PER_REQUEST):
            rows = step.read[start : start + EVENTS_PER_REQUEST]
            answer = self._client.events([_event(row) for row in rows])
            if answer["rejected"]:
                fields = [
                    FieldError(f"/{start + one['position'] - 1}{one.get('pointer') or ''}", str(one["detail"]))
                    for one in answer["errors"]
                    if one.get("verdict", "rejected") == "rejected"
                ]
                raise InvalidInput(fields[0].detail, errors=fields)
            for place, row in enumerate(rows):
                self._sent.setdefault((row["source"], row["id"]), len(self._sent) + place)
            self._counts["accepted"] += answer["accepted"]
            self._counts["duplicates"] += answer["duplicates"]
            self._counts["suspense"] += answer["suspended"]

    def _correct(self, step: Step) -> None:
        correction = step.read
        changes = {key: _json(key, value) for key, value in correction.changes.items()}
        body = {"corrections": [{"source": correction.source, "id": correction.id, **changes}]}
        try:
            self._client.post("/v1/usage/suspense/corrections", body)
        except InvalidInput as error:
            raise moved(error, "/corrections/0", "") from error

    def _bill_run(self, step: Step) -> Mapping[str, Any]:
        body = {key: step.form[key] for key in ("up_to", "document_date") if key in step.form}
        run = self._client.post("/v1/bill-runs", {**body, "wait": True})
        end = time.monotonic() + RUN_WAIT_S
        while run["state"] not in ("done", "cancelled"):  # too large to be waited for in one call
            if run["error"] or time.monotonic() > end:
                raise Unavailable(f"bill run {run['number']} is {run['state']}: {run['error'] or 'no end in sight'}")
            time.sleep(0.2)
            run = self._client.get(f"/v1/bill-runs/{run['id']}")
        return {"parked": run["parked"]}

    def _credit_note(self, step: Step) -> None:
        numbers = self._numbers()
        credited = step.read
        if not 1 <= credited.document <= len(numbers):
            detail = f"there is no document {credited.document}"
            raise InvalidInput(detail, errors=[FieldError("/document", detail)])
        body: dict[str, Any] = {"document": numbers[credited.document - 1]}
        if credited.amount is not None:
            body["amount"] = str(credited.amount)
        if credited.lines is not None:
            body["lines"] = [
                {
                    "line": one.line,
                    **({} if one.amount is None else {"amount": str(one.amount)}),
                    **({} if one.quantity is None else {"quantity": str(one.quantity)}),
                }
                for one in credited.lines
            ]
        self._client.post("/v1/credit-notes", body)

    def _reserve(self, step: Step) -> Mapping[str, Any]:
        form = {key: value for key, value in step.form.items() if key != "expect"}
        return {"granted": self._client.post("/v1/reservations", form)["granted"]}

    def _commit(self, step: Step) -> None:
        self._client.post(f"/v1/reservations/{path_part(step.read.id)}/commit", {"amount": str(step.read.amount)})

    def _release(self, step: Step) -> None:
        self._client.post(f"/v1/reservations/{path_part(step.read)}/release", {})

    # -- facts ---------------------------------------------------------------------------------------------------------

    def usage(self, customer: str, meter: str) -> Mapping[str, str]:
        answer = self._client.get("/v1/usage", customer=customer, meter=meter, period="running")
        found = [one for one in answer["meters"] if one["meter"] == meter]
        return found[0] if found else {"quantity": "0", "cost": "0"}

    def ingest(self) -> Mapping[str, int]:
        return self._counts

    def documents(self) -> Sequence[Mapping[str, Any]]:
        numbers = self._numbers()
        places = {number: str(place) for place, number in enumerate(numbers, start=1)}
        return [_document(self._client.get(f"/v1/invoices/{path_part(number)}"), places) for number in numbers]

    def _numbers(self) -> list[str]:
        """Numbers of all documents in the order made."""
        return [row["number"] for row in self._client.pages("/v1/invoices", order="oldest")]

    def suspense(self) -> Sequence[Mapping[str, Any]]:
        waiting = [
            {"id": one["id"], "source": one["source"], "reason": one["reason"]}
            for one in self._client.pages("/v1/usage/suspense")
        ]
        # Events of one request that lie in several lanes of the log arrived at once; the file says which came first.
        return sorted(waiting, key=lambda one: self._sent.get((one["source"], one["id"]), len(self._sent)))

    def alerts(self) -> Sequence[Mapping[str, Any]]:
        return list(self._client.pages("/v1/alerts"))

    def wallet(self, customer: str, currency: str) -> Mapping[str, str]:
        for one in self._client.get(f"/v1/wallets/{path_part(customer)}")["wallets"]:
            if one["currency"] == currency:
                return one
        return {"balance": "0", "reserved": "0"}


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    """An event as a sender would send it."""
    return {key: _json(key, value) for key, value in row.items() if value is not None}


def _json(key: str, value: Any) -> Any:
    if key == "data":
        return msgspec.json.decode(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _document(shown: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A document of the API as a scenario states it."""
    allowances: dict[tuple[str, str], Decimal] = {}
    for one in shown["allowances"]:
        key = (one["kind"], one["source"])
        stated = one["amount"] if one["gross"] is None else one["gross"]  # as the price is stated: with tax or without
        allowances[key] = allowances.get(key, ZERO) + Decimal(stated)
    keys = ("customer", "type", "date", "currency", "net", "tax", "gross", "prepaid", "due")
    return {
        **{key: shown[key] for key in keys},
        "refers_to": places[shown["refers_to"]] if shown["refers_to"] else None,
        "group": shown["group"] and shown["group"]["code"],
        **{
            key: shown["group"] and shown["group"][key] for key in ("order_reference", "buyer_reference", "cost_centre")
        },
        "lines": [_line(line, places, shown["customer"]) for line in shown["lines"]],
        "allowances": [{"kind": kind, "amount": str(amount)} for (kind, _), amount in allowances.items()],
        "taxes": [
            {
                **{key: tax[key] for key in ("category", "base", "amount")},
                "percent": decimal_text(Decimal(tax["percent"])),
            }
            for tax in shown["taxes"]
        ],
    }


def _line(line: Mapping[str, Any], places: Mapping[str, str], customer: str) -> dict[str, Any]:
    keys = ("subscription", "charge", "when", "from", "to", "quantity", "amount", "gross", "correction", "add_on")
    corrects = line["corrects"]
    return {
        **{key: line[key] for key in (*keys, "kind", "name", "unit", "plan", "cost_centre")},
        "allowance": line["allowance"] if line["gross_allowance"] is None else line["gross_allowance"],
        "customer": line["customer"] or customer,
        "corrects": corrects and {"document": places[corrects["document"]], "line": str(corrects["line"])},
        "tax_category": line["tax"]["category"],
        "tax_percent": line["tax"]["percent"],
    }
