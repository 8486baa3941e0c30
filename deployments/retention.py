"""How long a tenant keeps what no law makes it keep: read and set by class. A thin shell over
`pipelines/retention.py`."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from billing.errors import FieldError, InvalidInput
from deployments.access import Caller, may
from deployments.bodies import json_form, known_keys
from deployments.manners import Answer, Write, described, json_response, plain
from deployments.services import Services
from pipelines.retention import check_late_usage
from storage.sql import audit, retention_rules
from storage.sql.database import Connection

router = APIRouter(prefix="/v1", tags=["Administration"])

_RULE: dict[str, Any] = {
    "class": "notifications",
    "months": 12,
    "changed_at": "2026-05-04T09:00:00Z",
    "changed_by": "user ann@example.org",
    "next_at": "2026-05-05T09:00:00Z",
    "last_at": "2026-05-04T09:00:05Z",
    "last_result": {"before": "2025-05-04T09:00:00Z", "rows": 312},
    "failing_since": None,
    "error": None,
}
_ANSWER: dict[str, Any] = {"rules": [_RULE], "alarm": None}


def _shown(rules: list[dict[str, Any]]) -> dict[str, Any]:
    failing = [one["class"] for one in rules if one["failing_since"] is not None]
    return {"rules": plain(rules), "alarm": f"retention fails: {', '.join(failing)}" if failing else None}


@router.get("/retention", summary="How long things are kept", **described(answer=_ANSWER))
def read_retention_rules(request: Request, caller: Caller = Depends(may("access:read"))) -> Response:
    """Rules by class; a class without one is kept for ever. `alarm` says which fail since when they are due."""
    services: Services = request.app.state.services
    with services.database.tenant(caller.tenant_id) as connection:
        return json_response(_shown(retention_rules.rules(connection)))


@router.put(
    "/retention",
    summary="Set how long things are kept",
    **described(request={"notifications": 12, "record": 120}, answer=_ANSWER, also=(400, 409, 413, 415, 422)),
)
def put_retention_rules(
    request: Request, caller: Caller = Depends(may("access:write")), form: Any = Depends(json_form)
) -> Response:
    """Months by class, null: for ever; a class that is not named stays as it is. `usage`: so many months after the
    invoice that billed it, only where late usage is rejected (409). `notifications`: webhook messages that wait for
    nothing. `record`: what people did. A look a day; what goes does not come back."""
    form = known_keys(form, retention_rules.CLASSES)
    errors = [
        FieldError(f"/{name}", f"a number of months from 1 to {retention_rules.MONTHS_MAX}, or null, is needed")
        for name, months in form.items()
        if months is not None
        and (isinstance(months, bool) or not isinstance(months, int) or not 1 <= months <= retention_rules.MONTHS_MAX)
    ]
    if errors:
        raise InvalidInput(f"{errors[0].pointer}: {errors[0].detail}", errors=errors)
    write = Write(request)

    def work(connection: Connection) -> Answer:
        if form.get("usage") is not None:
            check_late_usage(connection, caller.tenant_id)
        now = write.services.clock()
        before = {one["class"]: one["months"] for one in retention_rules.rules(connection)}
        rules = retention_rules.put(connection, caller.tenant_id, form, actor=caller.actor, now=now)
        after = {one["class"]: one["months"] for one in rules}
        audit.record(connection, caller.tenant_id, at=now, actor=caller.actor, action="retention set",
                     subject="retention", before=before, after=after)  # fmt: skip
        return Answer(_shown(rules))

    return write.run(caller, work)
