"""Who may do what: every route with no key, a wrong key, too small a scope, and another tenant's key."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from fastapi.routing import APIRoute

from billing.errors import Unavailable
from deployments.access import PLATFORM_SCOPES, ROLES, SCOPES, TENANT_SCOPES
from deployments.app import api_routes, scopes_of
from storage.sql import users

pytestmark = pytest.mark.postgres

# Routes that nobody guards. Edited by hand, and only ever made shorter.
UNGUARDED = {"/v1/health/live", "/v1/health/ready"}

# Values for the parameters in paths; in the tests below each names something of the first tenant.
PARAMETERS = {
    **{"code": "acme", "customer": "acme", "id": "r1", "number": "none", "line": "1"},
    **{"version": "1", "document_type": "invoice"},
    **{"name": "none", "alert_id": "alert_0", "endpoint_id": ""},
    **{"document_id": "none", "kind": "pdf", "hold_id": "01a214f6-ea12-73a4-9578-c932b3cca9cd"},
    **{"run_id": "", "simulation_id": "", "preview_id": "", "key_id": "", "user_id": ""},
}


PRICES = {"code": "basic", "charges": [{"code": "storage", "price": {"model": "per_unit", "unit": "0.2"}}]}
SIMULATION = {"prices": PRICES, "from": "2026-01", "to": "2026-01"}


def all_routes() -> Iterator[tuple[str, APIRoute]]:
    for route in api_routes():
        for method in sorted(route.methods):
            yield method, route


def url_of(route: APIRoute, values: dict[str, str]) -> str:
    path = route.path_format
    for name, value in values.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path, path
    if path in ("/v1/usage", "/v1/events"):
        path += "?customer=acme"
    return path + ("?since=2026-01-01&until=2026-01-02" if path == "/v1/usage/days" else "")


@pytest.fixture(scope="module")
def world(api: Any) -> dict[str, Any]:
    """Two tenants; the first has a catalog, a draft, a bill run, a key, a user."""
    first, second = api.tenant(), api.tenant()
    first.catalog()
    key = first.post("/v1/keys", {"name": "k", "scopes": ["usage:read"]}).json()
    user = first.post("/v1/users", {"email": f"{first.code}@example.org", "password": "long enough", "role": "viewer"})
    assert user.status_code == 201, user.text
    run = first.post("/v1/bill-runs", {"up_to": "2026-02-01"}).json()
    for code in ("acme", "second"):
        plan = {"code": code, "currency": "EUR", "interval": "month", "charges": []}
        plan["charges"] = [
            {"code": "fee", "kind": "recurring", "price": {"model": "flat", "amount": "1"}, "tax": "standard"}
        ]
        assert first.put(f"/v1/plan-drafts/{code}", plan).status_code == 200
    reserved = first.post("/v1/reservations", {"customer": "acme", "id": "r1", "amount": "1.00"})
    assert reserved.status_code == 200, reserved.text
    simulation = first.post("/v1/simulations", SIMULATION)
    assert simulation.status_code == 202, simulation.text
    values = PARAMETERS | {"run_id": run["id"], "key_id": key["id"], "user_id": user.json()["id"]}
    values["simulation_id"] = simulation.json()["id"]
    preview = first.post("/v1/bill-run-previews", {"up_to": "2026-02-01"})
    assert preview.status_code == 202, preview.text
    values["preview_id"] = preview.json()["id"]
    hook = first.post("/v1/webhooks", {"url": "https://hooks.example.org/"})
    assert hook.status_code == 201, hook.text
    values["endpoint_id"] = hook.json()["id"]
    return {"first": first, "second": second, "values": values}


def test_only_the_listed_routes_are_unguarded(api: Any) -> None:
    assert {route.path for _, route in all_routes() if not scopes_of(route)} == UNGUARDED
    served = {(method.upper(), path) for path, methods in api.app.openapi()["paths"].items() for method in methods}
    assert served == {(method, route.path_format) for method, route in all_routes()}
    assert len(served) > 60


def test_no_route_answers_without_a_key_or_with_a_wrong_one(api: Any, world: dict[str, Any]) -> None:
    for method, route in all_routes():
        if route.path in UNGUARDED:
            continue
        for headers in ({}, {"Authorization": "Bearer cb_wrong"}, {"Authorization": "Basic eDp5"}):
            answer = api.http.request(method, url_of(route, world["values"]), headers=headers, json={})
            assert answer.status_code == 401, (method, route.path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["code"] == "not_authenticated"


def test_no_route_answers_a_key_that_lacks_its_scope(api: Any, world: dict[str, Any]) -> None:
    first = world["first"]
    without = {scope: first.key_with(*(TENANT_SCOPES - {scope})) for scope in SCOPES}
    for method, route in all_routes():
        needed = [scope for scope in scopes_of(route) if scope in SCOPES]
        if len(needed) > 1:  # any of them opens the route, which then looks at each step: tested below
            continue
        key = without[needed[0]] if needed else first.key
        if route.path in UNGUARDED:
            continue
        answer = api.http.request(
            method, url_of(route, world["values"]), headers={"Authorization": f"Bearer {key}"}, json={}
        )
        assert answer.status_code == 403, (method, route.path, answer.text)
        assert answer.json()["code"] == "not_allowed"


def test_steps_need_the_scope_of_each_step(world: dict[str, Any]) -> None:
    first = world["first"]
    catalog_only, usage_only = first.key_with("catalog:write"), first.key_with("usage:write")
    customer = [{"customer": {"code": "x", "name": "X", "country": "DE"}}]
    assert first.post("/v1/steps", customer, key=catalog_only).status_code == 403
    assert first.post("/v1/steps", customer, key=usage_only).status_code == 403
    run = [{"bill_run": {"up_to": "2026-01-01"}}]
    assert first.post("/v1/steps", run).status_code == 422


def test_another_tenants_key_sees_and_changes_nothing_of_the_first(api: Any, world: dict[str, Any]) -> None:
    """Every route that names something: 404 (or 422 for a form that refers to it). Lists are empty of it."""
    first, second = world["first"], world["second"]
    before = _all_rows(api, first.id)
    for method, route in all_routes():
        if not scopes_of(route) or set(scopes_of(route)) <= PLATFORM_SCOPES:
            continue
        body = {"document": "none"} if route.path == "/v1/credit-notes" else {}
        answer = second.api.http.request(
            method,
            url_of(route, world["values"]),
            headers={"Authorization": f"Bearer {second.key}"},
            json=body if method in ("POST", "PUT", "PATCH") else None,
        )
        assert answer.status_code < 500, (method, route.path, answer.text)
        if "{" in route.path_format:
            assert answer.status_code in (404, 422), (method, route.path, answer.text)
        assert first.id not in answer.text, route.path
        assert f"{first.code}@example.org" not in answer.text, route.path
        if method == "GET" and answer.status_code == 200 and "items" in answer.json():
            shown = {str(item.get("code", item.get("id"))) for item in answer.json()["items"]}
            assert not shown & {"acme", "s1", "storage", "basic", world["values"]["run_id"], world["values"]["key_id"]}
    assert _all_rows(api, first.id) == before


def _all_rows(api: Any, tenant_id: str) -> dict[str, int]:
    """How many rows each table has of a tenant, as the owner of the database sees them."""
    found: dict[str, int] = {}
    with psycopg.connect(api.services.database.dsn) as connection:
        for (table,) in _tenant_tables(connection):
            query = psycopg.sql.SQL("SELECT count(*) FROM {} WHERE tenant_id = %s").format(
                psycopg.sql.Identifier(table)
            )
            row = connection.execute(query, (UUID(tenant_id),)).fetchone()
            assert row is not None
            found[table] = row[0]
    return found


def _tenant_tables(connection: Any) -> list[tuple[str]]:
    return connection.execute(
        "SELECT table_name::text FROM information_schema.columns WHERE column_name = 'tenant_id'"
        " AND table_schema = 'public' ORDER BY table_name"
    ).fetchall()


def test_no_table_shows_a_row_of_another_tenant_to_the_applications_role(api: Any, world: dict[str, Any]) -> None:
    first, second = world["first"], world["second"]
    with psycopg.connect(api.services.database.dsn) as connection:
        tables = [table for (table,) in _tenant_tables(connection)]
    assert {"steps", "invoices", "api_keys", "memberships", "legal_entities"} <= set(tables)
    readable = 0
    for table in tables:
        query = psycopg.sql.SQL("SELECT count(*) AS n FROM {} WHERE tenant_id = %s").format(
            psycopg.sql.Identifier(table)
        )
        with api.services.database.tenant(second.id) as connection:
            may_read = connection.execute("SELECT has_table_privilege(current_user, %s, 'SELECT') AS may", (table,))
            if not may_read.fetchone()["may"]:
                continue
            readable += 1
            assert connection.execute(query, (UUID(first.id),)).fetchone() == {"n": 0}, table
        with pytest.raises(psycopg.errors.InsufficientPrivilege), api.services.database.tenant(second.id) as connection:
            connection.execute(
                "INSERT INTO audit_entries (tenant_id, at, actor, action, subject) VALUES (%s, now(), 'x', 'x', 'x')",
                (UUID(first.id),),
            )
    assert readable > 8
    with api.services.database.tenant(second.id) as connection:
        assert connection.execute("SELECT count(*) AS n FROM tenants").fetchone() == {"n": 1}


def test_every_table_of_tenants_has_forced_row_level_security_and_no_role_bypasses_it(api: Any) -> None:
    with psycopg.connect(api.services.database.dsn) as connection:
        open_tables = connection.execute(
            "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'"
            " AND relkind = 'r' AND NOT (relrowsecurity AND relforcerowsecurity) ORDER BY 1"
        ).fetchall()
        assert open_tables == [("schema_migrations",)]
        bypass = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'cloudbilling%%' AND (rolbypassrls OR rolsuper)"
        ).fetchall()
        assert bypass == []


def test_a_key_is_shown_once_and_stored_as_a_hash(api: Any, world: dict[str, Any]) -> None:
    first = world["first"]
    body = {"name": "gateway", "scopes": ["usage:write"]}
    made = first.post("/v1/keys", body, **{"Idempotency-Key": "gateway-key"})
    text = made.json()["key"]
    assert made.headers["cache-control"] == "no-store"
    assert text not in first.get("/v1/keys").text
    with psycopg.connect(api.services.database.dsn) as connection:
        for table in ("api_keys", "idempotency_keys", "audit_entries"):
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            assert text not in str(rows)
            assert text.encode() not in b"".join(bytes(c) for row in rows for c in row if isinstance(c, bytes))
    again = first.post("/v1/keys", body, **{"Idempotency-Key": "gateway-key"})
    assert again.json()["key"] == text
    assert again.headers["idempotent-replay"] == "true"
    assert first.post("/v1/keys", body).json()["key"] != text


def test_an_ended_key_stops_at_once_and_nobody_gives_more_than_they_have(world: dict[str, Any]) -> None:
    first = world["first"]
    made = first.post("/v1/keys", {"name": "short", "scopes": ["catalog:read", "access:write"]}).json()
    assert first.get("/v1/meters", key=made["key"]).status_code == 200
    more = first.post("/v1/keys", {"name": "more", "scopes": ["billing:write"]}, key=made["key"])
    assert more.json()["errors"] == [
        {"pointer": "/scopes/0", "detail": "you cannot give billing:write: you do not have it"}
    ]
    platform = first.post("/v1/keys", {"name": "more", "scopes": ["tenants:create"]})
    assert platform.status_code == 422
    role = {"email": "eve@example.org", "password": "long enough", "role": "admin"}
    assert first.post("/v1/users", role, key=made["key"]).status_code == 422
    assert (
        first.post("/v1/keys", {"name": "x", "tenant": world["second"].code, "scopes": ["usage:read"]}).status_code
        == 404
    )
    ended = first.api.http.delete(f"/v1/keys/{made['id']}", headers={"Authorization": f"Bearer {first.key}"})
    assert ended.status_code == 200
    assert first.get("/v1/meters", key=made["key"]).status_code == 401


def test_an_expired_key_is_no_key(api: Any, world: dict[str, Any]) -> None:
    first = world["first"]
    made = first.post("/v1/keys", {"name": "old", "scopes": ["usage:read"], "expires_at": "2026-01-01"}).json()
    assert first.get("/v1/events?customer=acme", key=made["key"]).status_code == 401


def test_passwords_are_argon2id_and_guessing_pauses_the_account(api: Any, world: dict[str, Any]) -> None:
    first = world["first"]
    email = f"ann-{first.code}@example.org"
    body = {"email": email, "name": "Ann", "password": "correct horse battery", "role": "billing"}
    assert first.post("/v1/users", body).status_code == 201
    with psycopg.connect(api.services.database.dsn) as connection:
        (stored,) = connection.execute("SELECT password_hash FROM users WHERE email = %s", (email,)).fetchone() or ("",)
    assert stored.startswith("$argon2id$")
    now = datetime(2026, 3, 1, tzinfo=UTC)
    token, who = users.sign_in(api.services.database, email.upper(), "correct horse battery", now)
    assert (who.role, who.tenant_id) == ("billing", first.id)
    with api.services.database.system() as connection:
        assert users.session(connection, token, now) == who
        assert users.session(connection, token + "x", now) is None
        assert users.session(connection, token, now + users.SESSION_LASTS) is None
    for _ in range(users.FAILURES_FREE):
        with pytest.raises(Exception, match="not right"):
            users.sign_in(api.services.database, email, "wrong password", now)
    with pytest.raises(Exception, match="too many") as caught:
        users.sign_in(api.services.database, email, "correct horse battery", now)
    assert caught.value.context["retry_after"] >= 1
    with pytest.raises(Exception, match="not right"):
        users.sign_in(api.services.database, "nobody@example.org", "correct horse battery", now)


def test_a_session_reads_the_api_and_writes_only_from_our_own_pages(api: Any, world: dict[str, Any]) -> None:
    first = world["first"]
    email = f"bob-{first.code}@example.org"
    body = {"email": email, "password": "correct horse battery", "role": "admin"}
    assert first.post("/v1/users", body).status_code == 201
    token, _ = users.sign_in(api.services.database, email, "correct horse battery", datetime.now(UTC))
    cookie = {"Cookie": f"cloudbilling_session={token}"}
    assert api.http.get("/v1/customers", headers=cookie).json()["items"][0]["code"] == "acme"
    meter = {"code": "m2", "event_type": "t", "aggregation": "count"}
    assert api.http.post("/v1/meters", json=meter, headers=cookie).status_code == 403
    elsewhere = cookie | {"Sec-Fetch-Site": "cross-site"}
    assert api.http.post("/v1/meters", json=meter, headers=elsewhere).status_code == 403
    ours = cookie | {"Sec-Fetch-Site": "same-origin"}
    assert api.http.post("/v1/meters", json=meter, headers=ours).status_code == 201


def test_a_user_of_another_tenant_is_out_of_reach_of_an_administrator(api: Any, world: dict[str, Any]) -> None:
    taken = {"email": f"{world['first'].code}@example.org", "password": "a new password", "role": "viewer"}
    assert world["second"].post("/v1/users", taken).status_code == 409
    headers = {"Authorization": f"Bearer {api.platform_key}"}
    join = taken | {"tenant": world["second"].code}
    # Another password would let whoever chose the first one sign in to the second tenant.
    assert api.http.post("/v1/users", json=join, headers=headers).status_code == 409
    joined = api.http.post("/v1/users", json=join | {"password": "long enough"}, headers=headers)
    assert joined.status_code == 201
    with pytest.raises(Exception, match="not right"):
        users.sign_in(api.services.database, taken["email"], "a new password", datetime.now(UTC))


def test_roles_hold_only_scopes_that_exist() -> None:
    assert all(scopes <= TENANT_SCOPES for scopes in ROLES.values())
    assert not TENANT_SCOPES & PLATFORM_SCOPES


def test_usage_comes_in_while_sql_is_away_for_keys_that_were_seen(
    api: Any, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingest rests on the object store alone. Everything else says 503; a key that was never seen, too."""
    first = world["first"]
    unseen = first.key_with("usage:write")
    event = '{"source":"a","id":"away-%d","type":"storage.write","customer":"acme","time":"2026-01-05T10:00:00Z"}'
    assert first.usage(event % 1).status_code == 200
    gate = api.app.state.gate
    asked = 0

    def away(text: str) -> None:
        nonlocal asked
        asked += 1
        raise Unavailable("the database is not available")

    monkeypatch.setattr(gate, "_find", away)
    monkeypatch.setattr("deployments.access.FRESH_S", 0.0)
    assert [first.usage(event % number).status_code for number in (2, 3, 4)] == [200, 200, 200]
    assert asked == 1
    assert first.get("/v1/customers").status_code == 503
    assert first.get("/v1/customers").headers["retry-after"]
    refused = api.http.post("/v1/usage", content=event % 5, headers={"Authorization": f"Bearer {unseen}"})
    assert refused.status_code == 503
    monkeypatch.setattr("deployments.access.STALE_S", 0.0)
    assert first.usage(event % 6).status_code == 503
