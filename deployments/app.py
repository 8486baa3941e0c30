"""The HTTP application: all routes of the API and the front end over one set of services. Knows nothing of Ray."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.types import Lifespan

from actors.accounts_desk import AccountsDesk
from actors.backfill_desk import BackfillDesk
from actors.budget_desk import BudgetDesk
from deployments import (
    access_reports,
    accompanying,
    accounts,
    administration,
    amendments,
    archive,
    backfills,
    bill_run_rules,
    billing_documents,
    budgets,
    credit_notes,
    document_setting,
    erasures,
    explanations,
    health,
    invoice_factory,
    invoice_issuing,
    lanes,
    layouts,
    master_data,
    previews,
    prices,
    problems,
    retention,
    run_previews,
    simulations,
    suspense,
    tenant_ends,
    tenant_settings,
    usage_export,
    usage_ingest,
    usage_queries,
    usage_ranking,
    webhooks,
)
from deployments.access import PLATFORM_SCOPE_TEXTS, SCOPES, Gate
from deployments.bodies import Room
from deployments.key_limits import LimitHeaders
from deployments.manners import MasterNumbers
from deployments.quick_routes import QuickRoutes
from deployments.services import Services
from deployments.shard_figures import ask_shards
from deployments.tracing import FRAMEWORK_TELEMETRY_OFF, Traced
from deployments.usage_groups import UsageGroups
from pipelines.usage_queries import UsageQueries

VERSION = "0.1.0"
# In this order: paths of explanations, previews and budgets are longer than `{code:path}` of what comes behind them.
PARTS = (
    *(
        accounts,
        usage_ingest,
        usage_export,
        usage_queries,
        usage_ranking,
        amendments,
        suspense,
        backfills,
        explanations,
        previews,
        access_reports,
        erasures,
        simulations,
        budgets,
        webhooks,
        document_setting,
        accompanying,
        master_data,
        prices,
        bill_run_rules,
        run_previews,
        invoice_factory,
        invoice_issuing,
        billing_documents,
        credit_notes,
        layouts,
        archive,
    ),
    *(tenant_ends, retention, tenant_settings, administration, lanes, health),
)
_ABOUT = """Usage to cash: send usage, keep catalog and contracts, run bills, fetch invoices.

- **Keys.** `Authorization: Bearer KEY`. The key decides the tenant; no URL names one.
- **Amounts and quantities** are strings (`"12.50"`), never floats. **Times** are RFC 3339 with an offset.
- **Writes** take an `Idempotency-Key`: the same request again gets the first answer (`Idempotent-Replay: true`); the
  same key with another request is a 409. Usage needs none: an event's `source` and `id` are its key.
- **Lists** have `items` and `next_cursor`; send it back as `cursor`.
- **Changes** take `If-Match` with the `ETag` that was read; 412 says that somebody else was faster.
- **Errors** are `application/problem+json` (RFC 9457); `errors` names every bad place by its JSON pointer.
  `retryable: true` (429, 503) means: send the same again after `Retry-After` seconds.
"""
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "retryable"],
    "properties": {
        "type": {"type": "string", "format": "uri", "example": "urn:cloudbilling:problem:invalid_input"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def build_app(services: Services, *, front: bool = True, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The application over these services; `front` adds the pages at `/`, `lifespan` what lives as long as it does."""
    app = FastAPI(
        title="Cloud Billing",
        version=VERSION,
        description=_ABOUT,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=FRAMEWORK_TELEMETRY_OFF,
    )
    app.state.services = services
    app.state.gate = Gate(services)
    app.state.room = Room(services.limits.bytes_in_flight_max)
    app.state.numbers = MasterNumbers()
    app.state.usage_groups = UsageGroups(services.router)
    app.state.accounts = AccountsDesk(services.router, accounts.tell)
    app.state.budgets = BudgetDesk(services.router)
    app.state.backfills = BackfillDesk(services.router, services.store)
    app.state.queries = UsageQueries(services.log, services.database, ask_shards(services.router))
    problems.install(app)
    for part in PARTS:
        app.include_router(part.router)
    if front:
        from deployments.front import front_router

        app.include_router(front_router(services), include_in_schema=False)
    app.add_middleware(QuickRoutes, application=app, routes=tuple(_hot_routes()))
    app.add_middleware(LimitHeaders)
    app.add_middleware(Traced)  # added last, so outermost
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version="3.1.0",
            description=app.description,
            routes=app.routes,
            tags=[
                {"name": "Usage", "description": "Events in, quantities and cost out."},
                {"name": "Catalog", "description": "Tax codes, meters, plans."},
                {"name": "Contracts", "description": "Customers, subscriptions, budgets, top-ups."},
                {"name": "Webhooks", "description": "Who is told of alerts, and what became of it."},
                {"name": "Wallets", "description": "Reserve, commit, release; what is left."},
                {"name": "Billing", "description": "Bill runs, invoices, credit notes."},
                {"name": "Layouts", "description": "What documents look like: drafts, versions, previews."},
                {"name": "Archive", "description": "Files that no longer change: find, read, keep, prove."},
                {"name": "Administration", "description": "Tenants, keys, users, settings."},
                {"name": "Health", "description": "Is it there, is it ready."},
            ],
        )
        parts = document.setdefault("components", {})
        parts.setdefault("schemas", {})["Problem"] = _PROBLEM
        for unused in ("HTTPValidationError", "ValidationError"):
            parts["schemas"].pop(unused, None)
        scopes = "\n".join(f"- `{name}`: {words}" for name, words in (SCOPES | PLATFORM_SCOPE_TEXTS).items())
        parts["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": f"An API key. Scopes:\n{scopes}"}
        }
        for route in api_routes():
            _complete(document["paths"][route.path_format], route)
        app.openapi_schema = document
    return app.openapi_schema


def api_routes() -> list[APIRoute]:
    """All routes of the API (not those of the pages)."""
    return [route for part in PARTS for route in part.router.routes if isinstance(route, APIRoute)]


def _complete(path: dict[str, Any], route: APIRoute) -> None:
    """Security and scope of an operation; our problem in place of the framework's validation error."""
    scopes = scopes_of(route)
    for method in route.methods:
        operation = path[method.lower()]
        answers = operation["responses"]
        if "HTTPValidationError" in str(answers.get("422")):
            answers["422"]["description"] = "The input is not valid; `errors` names every bad place."
            answers["422"]["content"] = {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }
        operation["operationId"] = route.name
        if scopes:
            operation["security"] = [{"key": []}]
            words = " or ".join(f"`{scope}`" for scope in scopes)
            operation["description"] = f"{operation.get('description', '')}\n\nScope: {words}.".strip()
        else:
            operation["security"] = []


def _hot_routes() -> Iterator[APIRoute]:
    """Those that are called for every event or use."""
    for route in (*usage_ingest.router.routes, *accounts.router.routes):
        assert isinstance(route, APIRoute)
        if "POST" in (route.methods or ()):
            yield route


def scopes_of(route: APIRoute) -> tuple[str, ...]:
    """The scopes that a route's guard asks for; empty means that nobody guards it."""
    found: tuple[str, ...] = ()
    for dependency in route.dependant.dependencies:
        found += tuple(getattr(dependency.call, "scopes", ()))
    return found
