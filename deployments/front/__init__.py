"""The front end: pages rendered on the server, made smooth by htmx, whole without JavaScript.

Owns `/`, `/static` and the pages below; the API is `deployments/app.py`'s. No request leaves the host.
"""

from fastapi import APIRouter, Response

from deployments.front import page
from deployments.front.access.routes import routes as access_routes
from deployments.front.contracts.budgets import routes as budget_routes
from deployments.front.contracts.documents import routes as customer_document_routes
from deployments.front.contracts.previews import routes as preview_routes
from deployments.front.contracts.references import routes as reference_routes
from deployments.front.contracts.routes import routes as contracts_routes
from deployments.front.documents.archive import routes as archive_routes
from deployments.front.documents.bill_runs import routes as bill_run_routes
from deployments.front.documents.credit import routes as credit_routes
from deployments.front.documents.layouts import routes as layout_routes
from deployments.front.documents.line import routes as line_routes
from deployments.front.documents.routes import routes as documents_routes
from deployments.front.documents.run_previews import routes as run_preview_routes
from deployments.front.operations.lanes import routes as lane_routes
from deployments.front.operations.routes import routes as operations_routes
from deployments.front.prices.routes import routes as prices_routes
from deployments.front.prices.simulations import routes as simulation_routes
from deployments.front.settings.bill_runs import routes as run_settings_routes
from deployments.front.settings.erasures import routes as erasure_routes
from deployments.front.settings.routes import routes as settings_routes
from deployments.front.settings.webhooks import routes as webhook_routes
from deployments.front.statistics.routes import routes as statistics_routes
from deployments.services import Services

__all__ = ["front_router"]
ASSET_AGE_S = 31_536_000


def front_router(services: Services) -> APIRouter:
    """All pages and their static files."""
    front = page.Front(services)
    router = APIRouter()

    @router.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        known = page.ASSETS.get(name)
        if known is None:
            return Response("", status_code=404, headers=page.SECURITY_HEADERS)
        path, media_type = known
        headers = {
            "Cache-Control": f"public, max-age={ASSET_AGE_S}, immutable",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": page.CONTENT_SECURITY_POLICY,
        }
        return Response(path.read_bytes(), media_type=media_type, headers=headers)

    for routes in (
        access_routes,
        statistics_routes,
        budget_routes,
        customer_document_routes,
        reference_routes,
        preview_routes,  # before the contracts, whose paths take every longer one
        contracts_routes,
        prices_routes,
        simulation_routes,
        line_routes,  # both before the documents, whose path takes every longer one
        credit_routes,
        documents_routes,
        bill_run_routes,
        run_preview_routes,
        layout_routes,
        archive_routes,
        operations_routes,
        lane_routes,
        settings_routes,
        webhook_routes,
        run_settings_routes,
        erasure_routes,
    ):
        router.include_router(routes(front))
    return router
