"""The demos: the main job on real usage with its reconciliation, and a generated year to look at.

Both talk to a running platform over HTTP like any client, and both may be started again: a tenant that is there is
used, steps and events that are there are not doubled, months that are billed stay billed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

from billing.errors import BillingError, Conflict, InvalidInput
from cluster.client import Client, path_part

Progress = Callable[[str, int, int], None]  # what, done, of how many

EXAMPLE = Path(__file__).parent.parent / "examples" / "focus"
STEPS_A_CALL = 2_000
EVENTS_A_CALL = 20_000
WAIT_S = 900.0
PASSWORD_FILE = "demo.password"  # noqa: S105 - a name in the data folder, 0600


@dataclass(frozen=True)
class Platform:
    """A running platform and the key that may create tenants on it."""

    url: str
    key: str

    def tenant(self, form: Mapping[str, Any]) -> tuple[Client, bool]:
        """A client for the tenant of this form, which is created unless it exists. The flag says: it is new."""
        with Client(self.url, self.key) as platform:
            try:
                made = platform.post("/v1/tenants", dict(form))
                return Client(self.url, made["key"]), True
            except Conflict:
                from deployments.access import TENANT_SCOPES

                made = platform.post(
                    "/v1/keys", {"tenant": form["code"], "name": "demo", "scopes": sorted(TENANT_SCOPES)}
                )
                return Client(self.url, made["key"]), False

    def user(self, tenant: str, email: str, password: str) -> None:
        """Let a person into a tenant, as its administrator; nothing happens if he is in already."""
        form = {"tenant": tenant, "email": email, "name": "Demo", "password": password, "role": "admin"}
        with Client(self.url, self.key) as platform, suppress(Conflict):
            platform.post("/v1/users", form)


# -- What is loaded ----------------------------------------------------------------------------------------------------


def load_all(settings: Any, progress: Progress, *, sign_in: str) -> dict[str, Any]:
    """What `make run` shows: real usage billed by consumption and by value, and the generated year; one user for all.

    Gives the user's sign-in. What is there already is left as it is.
    """
    sign_in_form = {"email": sign_in, "password_file": str(settings.data_dir / PASSWORD_FILE)}
    done = settings.data_dir / "demo.done"
    if done.exists():
        return {"sign_in": sign_in_form}
    platform = Platform(settings.url, settings.admin_key_file.read_text().strip())
    password = _password(settings.data_dir / PASSWORD_FILE)
    file = EXAMPLE / "focus_usage.csv"
    load_focus(platform, file, tenant="focus", progress=progress)
    platform.user("focus", sign_in, password)
    load_focus(platform, file, by="value", tenant="focus-resale", progress=progress)
    platform.user("focus-resale", sign_in, password)
    load_generated(platform, now=datetime.now(UTC), progress=progress)
    platform.user("nordwind", sign_in, password)
    done.touch()
    return {"sign_in": sign_in_form}


def _password(path: Path) -> str:
    if not path.exists():
        draft = path.with_name(f".{path.name}")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(12))
        draft.replace(path)
    return path.read_text().strip()


def load_focus(
    platform: Platform, file: Path, *, by: str = "consumption", tenant: str | None = None, progress: Progress
) -> dict[str, Any]:
    """Bill a FOCUS file in a tenant of its own, and reconcile it with what the provider states.

    `by` is "consumption" (quantity x list price) or "value" (a margin on the provider's cost). The tenant's code
    defaults to one made from the file's content, so the same file is billed once however often it is loaded.
    """
    import polars as pl
    import yaml

    from pipelines.price_list import PriceList, business_steps, days
    from pipelines.usage_mapping import UsageMapping
    from storage.sources.tables import read_table

    mapping = UsageMapping.parse(yaml.safe_load((EXAMPLE / "mapping.yaml").read_text()))
    prices = PriceList.parse(yaml.safe_load((EXAMPLE / "business.yaml").read_text()))
    rows = mapping.with_derived(pl.concat(read_table(file, missing=mapping.missing)))
    if rows.height == 0:
        raise InvalidInput(f"{file} has no rows")
    code = tenant or f"focus-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}-{by}"
    form = {**prices["tenant"], "code": code, "name": f"FOCUS usage by {by} ({file.name})", "kind": "test"}
    client, _ = platform.tenant(form)
    with client:
        _apply(client, business_steps(rows, prices, by=by), progress)
        answers = _send(client, mapping.events(rows), progress)
        run = _bill(client, _end_of_last_month(max(days(rows, prices))), None, progress)
        report = _reconcile(client, rows, prices, answers, by)
    return {"tenant": code, "bill_run": run, **report}


def load_generated(platform: Platform, *, now: datetime, progress: Progress) -> dict[str, Any]:
    """Fill the generated tenant: a year billed month by month, credit notes, a budget about to be exceeded."""
    from pipelines.demo_generator import TENANT, business

    made = business(now.date())
    client, _ = platform.tenant(TENANT)
    with client:
        _apply(client, made.steps() + made.later_steps(), progress)
        sent = 0
        for batch in made.batches(now, EVENTS_A_CALL):
            client.usage(batch)
            sent += batch.height
            progress("events", sent, 0)
        for number, day in enumerate(made.billing_dates, start=1):
            _bill(client, day, day, progress)
            progress("bill runs", number, len(made.billing_dates))
        _credit_some(client)
        _watch_one(client, made, now)
    return {"tenant": TENANT["code"], "events": sent, "bill_runs": len(made.billing_dates)}


def _apply(client: Client, steps: list[dict[str, Any]], progress: Progress) -> None:
    for start in range(0, len(steps), STEPS_A_CALL):
        chunk = steps[start : start + STEPS_A_CALL]
        # The key is made of the content: a second load finds the stored answer instead of a conflict.
        key = hashlib.sha256(repr(chunk).encode()).hexdigest()
        try:
            client.steps(chunk, idempotency_key=key)
        except Conflict:
            if start == 0 and next(client.pages("/v1/customers"), None) is None:
                raise
        progress("steps", min(start + STEPS_A_CALL, len(steps)), len(steps))


def _send(client: Client, events: Any, progress: Progress) -> dict[int, str]:
    """Send all events; gives the reason of each that was not stored, by its row number."""
    refused: dict[int, str] = {}
    for start in range(0, events.height, EVENTS_A_CALL):
        answer = client.usage(events.slice(start, EVENTS_A_CALL))
        for error in answer.get("errors", ()):
            if error.get("verdict") == "rejected":
                refused[start + int(error["position"]) - 1] = str(error.get("detail") or error.get("reason"))
        progress("events", min(start + EVENTS_A_CALL, events.height), events.height)
    return refused


def _bill(client: Client, up_to: date, document_date: date | None, progress: Progress) -> dict[str, Any]:
    body: dict[str, Any] = {"up_to": up_to.isoformat()}
    if document_date:
        body["document_date"] = document_date.isoformat()
    run = client.post("/v1/bill-runs", body)
    end = time.monotonic() + WAIT_S
    while run["state"] not in ("done", "cancelled"):
        if time.monotonic() > end:
            raise BillingError(f"bill run {run['id']} is still {run['state']} after {WAIT_S:.0f} s")
        time.sleep(0.2)
        run = client.get(f"/v1/bill-runs/{run['id']}")
        done = run.get("progress") or {}
        progress(f"bill run {up_to}", int(done.get("done") or 0), int(done.get("total") or 0))
    if run["state"] != "done":
        raise BillingError(f"bill run {run['id']} ended as {run['state']}: {run.get('error') or 'see its page'}")
    return {"id": run["id"], "up_to": up_to.isoformat()}


def _reconcile(client: Client, rows: Any, prices: Any, refused: Mapping[int, str], by: str) -> dict[str, Any]:
    from pipelines.reconciliation import report, text

    suspended = {(item["source"], item["id"]): item["reason"] for item in client.pages("/v1/usage/suspense")}
    totals = client.get("/v1/usage/completeness")["totals"]
    invoices: list[dict[str, Any]] = []
    exact = Fraction(0)
    for item in client.pages("/v1/invoices"):
        sign = -1 if item["type"] == "credit_note" else 1
        whole = client.get(f"/v1/invoices/{path_part(item['number'])}")
        exact += sign * sum((Fraction(line["explanation"]["exact"]) for line in whole["lines"]), Fraction(0))
        invoices.append(
            {
                "customer": item["customer"],
                "number": item["number"],
                "type": item["type"],
                "currency": item["currency"],
                "net": text(sign * Decimal(item["net"])) if sign < 0 else item["net"],
                "gross": text(sign * Decimal(item["gross"])) if sign < 0 else item["gross"],
            }
        )
    invoices.sort(key=lambda invoice: invoice["number"])
    priced = _priced_rows(rows, prices, refused, suspended, by)
    stored = int(totals["stored"])
    counts = {
        "rows": rows.height,
        "accepted": int(totals["rated"]),
        "suspended": int(totals["suspended"]),
        "duplicates": rows.height - len(refused) - stored,
        "rejected": len(refused),
        "customers": rows[prices["customer"]].drop_nulls().n_unique(),
    }
    return report(priced, counts=counts, invoices=invoices, exact_of_lines=exact)


def _priced_rows(
    rows: Any, prices: Any, refused: Mapping[int, str], suspended: Mapping[tuple[str, str], str], by: str
) -> list[Any]:
    """What each row was charged, exactly: the plan's own rule applied to the row's own numbers."""
    from pipelines.price_list import chargeable
    from pipelines.reconciliation import PricedRow

    margin = Decimal(str(prices["margin_percent"])) / 100
    seen: set[tuple[str, str]] = set()  # within one account: the same id elsewhere is another row
    priced: list[PricedRow] = []
    for number, row in enumerate(rows.iter_rows(named=True)):
        list_cost = _decimal(row[prices["list_amount"]])
        note = ""
        if number in refused:
            note = f"rejected: {refused[number]}"
        elif (str(row[prices["customer"]]), row["Id"]) in seen:
            note = "duplicate: the id came before"
        elif ("focus", row["Id"]) in suspended:
            note = f"suspended: {suspended[('focus', row['Id'])]}"
        seen.add((str(row[prices["customer"]]), row["Id"]))
        has_price = row[prices["price"]] is not None and row[prices["quantity"]] is not None
        if not note and has_price and by == "consumption" and not chargeable(row[prices["unit_price"]]):
            note = "no charge: the list price is no number of at most 12 decimals"
        if note:
            priced.append(PricedRow(row["Id"], None, None, Decimal(0), list_cost, note))
            continue
        quantity = _decimal(row[prices["quantity"]]) if has_price else None
        unit_price = _decimal(row[prices["unit_price"]]) if has_price else None
        if by == "value":
            ours = _decimal(row[prices["billed_amount"]]) * (margin if has_price else 1)
        else:
            ours = quantity * unit_price if quantity is not None and unit_price is not None else list_cost
        priced.append(PricedRow(row["Id"], quantity, unit_price, ours, list_cost))
    return priced


def _credit_some(client: Client) -> None:
    """Three credit notes: one whole invoice, one line of two others. Nothing if there are some already."""
    if any(item["type"] == "credit_note" for item in client.pages("/v1/invoices", type="credit_note")):
        return
    invoices = [item for item in client.pages("/v1/invoices") if Decimal(item["net"]) > 20]
    if len(invoices) < 60:
        raise BillingError(f"the generated year should have made some 480 invoices, there are {len(invoices)}")
    client.post("/v1/credit-notes", {"document": invoices[20]["number"], "reason": "Ordered twice by mistake"})
    for item in (invoices[40], invoices[55]):
        whole = client.get(f"/v1/invoices/{path_part(item['number'])}")
        line = max(range(len(whole["lines"])), key=lambda n: Decimal(whole["lines"][n]["amount"])) + 1
        amount = (Decimal(whole["lines"][line - 1]["amount"]) / 2).quantize(Decimal("0.01"))
        body = {"document": item["number"], "lines": [{"line": line, "amount": str(amount)}], "reason": "Goodwill"}
        client.post("/v1/credit-notes", body)


def _watch_one(client: Client, made: Any, now: datetime) -> None:
    """A budget of which the running month has used a little more than nine tenths."""
    customer = next(customer for customer in made.customers if customer.plan == "compute")
    usage = client.get("/v1/usage", customer=customer.code)
    cost = sum((Decimal(item["cost"]) for item in usage["meters"]), Decimal(0))
    budget = {
        "code": "cloud-spend",
        "customer": customer.code,
        "amount": str((cost / Decimal("0.92")).quantize(Decimal("0.01"))),
        "period": "month",
        "thresholds": ["50", "90", "100"],
        "action": "notify",
    }
    try:
        client.steps([{"at": now.astimezone(UTC).isoformat(), "budget": budget}], idempotency_key="demo-budget")
    except Conflict:
        return  # it is there since the first load


def _end_of_last_month(latest: date) -> date:
    return latest.replace(year=latest.year + latest.month // 12, month=latest.month % 12 + 1, day=1)


def _decimal(text: str | None) -> Decimal:
    """A number of the file; what is missing or no number counts as 0."""
    try:
        found = Decimal(text) if text is not None else Decimal(0)
    except InvalidOperation:
        return Decimal(0)
    return found if found.is_finite() else Decimal(0)
