"""Settings of the tenant: what it is, and its API keys."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Response

from deployments.access import SCOPES
from deployments.front.page import Front, Visit
from deployments.key_limits import RATE_MAX
from storage.sql import audit, keys, tenants

KEYS_MAX = 500
DEFAULT_SCOPES = ("usage:write", "usage:read")


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    services = front.services
    visitor = Depends(front.signed_in)

    def page(visit: Visit, new_key: Mapping[str, str] | None = None) -> Response:
        with services.database.tenant(visit.tenant_id) as connection:
            found = keys.page(connection, after=None, limit=KEYS_MAX)
            tenant = tenants.by_id(connection, visit.tenant_id)
            entity = tenants.legal_entity(connection)
        return front.page(
            visit, "settings/settings.html", area="settings", new_key=new_key,
            keys=[{**key, "state": _state(key, visit.now)} for key in reversed(found)],
            facts=_facts(visit, tenant, entity["form"], front.master(visit).tenant.late_usage),
        )  # fmt: skip

    @router.get("/settings")
    def settings(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("access:read")
        return page(visit)

    @router.get("/settings/keys/new")
    def key_form(visit: Annotated[Visit, visitor]) -> Response:
        visit.need("access:write")
        return front.page(
            visit,
            "settings/key_new.html",
            area="settings",
            wrong={},
            name="",
            scopes=list(SCOPES),
            chosen=DEFAULT_SCOPES,
            limits={},
        )

    @router.post("/settings/keys")
    def make_key(
        visit: Annotated[Visit, visitor],
        name: Annotated[str, Form(max_length=1_000)] = "",
        scopes: Annotated[list[str] | None, Form()] = None,
        requests_per_s: Annotated[str, Form(max_length=100)] = "",
        events_per_s: Annotated[str, Form(max_length=100)] = "",
        form_token: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        chosen = [scope for scope in scopes or [] if scope in SCOPES]
        wrong: dict[str, str] = {}
        if not name.strip() or len(name) > 100:
            wrong["name"] = visit.texts("settings.name_missing")
        if not chosen:
            wrong["scopes"] = visit.texts("settings.scopes_missing")
        said = {"requests_per_s": requests_per_s.strip(), "events_per_s": events_per_s.strip()}
        limits: dict[str, int] = {}
        for what, text in said.items():
            if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= RATE_MAX:
                limits[what] = int(text)
            elif text:
                wrong[what] = visit.texts("settings.limits_wrong")
        if wrong:
            return front.page(
                visit, "settings/key_new.html", status=422, area="settings", wrong=wrong, name=name,
                scopes=list(SCOPES), chosen=chosen, limits=said,
            )  # fmt: skip
        now = services.clock()
        with services.database.system() as connection:
            made = keys.create(
                connection, tenant_id=visit.tenant_id, name=name.strip(), scopes=chosen, actor=visit.user.actor,
                now=now, limits=limits,
            )  # fmt: skip
            tenants.enter(connection, visit.tenant_id)  # the key and its record, both or none
            audit.record(
                connection, visit.tenant_id, at=now, actor=visit.user.actor, action="key made", subject=made.start,
                after={"name": name.strip(), "scopes": chosen, "limits": limits},
            )  # fmt: skip
        return page(visit, {"name": name.strip(), "key": made.key})

    @router.post("/settings/keys/{key_id}/revoke")
    def revoke(
        visit: Annotated[Visit, visitor], key_id: UUID, form_token: Annotated[str, Form(max_length=200)] = ""
    ) -> Response:
        visit.need("access:write")
        front.check_form(visit, form_token)
        now = services.clock()
        with services.database.tenant(visit.tenant_id) as connection:
            keys.revoke(connection, str(key_id), now)
            audit.record(
                connection, visit.tenant_id, at=now, actor=visit.user.actor, action="key ended", subject=str(key_id)
            )
        gate = getattr(visit.request.app.state, "gate", None)
        if gate is not None:
            gate.forget()
        return front.go(visit, "/settings")

    return router


def _state(key: Mapping[str, Any], now: datetime) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    return "expired" if key["expires_at"] is not None and key["expires_at"] <= now else "active"


def _facts(visit: Visit, tenant: tenants.Tenant, entity: Mapping[str, Any], late_usage: str) -> list[tuple[str, str]]:
    t = visit.texts
    facts = [
        (t("settings.company"), str(entity.get("name") or tenant.name)),
        (t("settings.vat_id"), str(entity.get("vat_id") or "")),
        (t("settings.code"), tenant.code),
        (t("settings.kind"), t(f"tenant_kind.{tenant.kind}")),
        (t("settings.currency"), tenant.currency),
        (t("settings.timezone"), tenant.timezone),
        (t("settings.country"), tenant.country or ""),
        (t("settings.late_usage"), t(f"late_usage.{late_usage}")),
        (t("settings.generated"), t("settings.generated_yes") if tenant.generated else ""),
    ]
    return [(label, value) for label, value in facts if value]
