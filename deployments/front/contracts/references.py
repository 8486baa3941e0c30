"""Pages that change what documents say of orders and references: of a subscription, and of a customer what goes on one.

Owns the forms. What a value may look like says the step that is written (`billing/steps/`), in the words of the API.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Response

from billing.errors import InvalidInput, NotFound
from billing.master import DOCUMENT_PER, Customer
from billing.segments import Subscription
from billing.steps.references import KEYS, REFERENCE_LENGTH_MAX
from deployments.front.page import Front, Visit, path_of
from deployments.front.texts import Texts
from storage.sql import steps

Text = Annotated[str, Form(max_length=REFERENCE_LENGTH_MAX + 1)]
Token = Annotated[str, Form(max_length=200)]


def routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=front.route_class(), include_in_schema=False)
    visitor = Depends(front.signed_in)

    def write(visit: Visit, step: Mapping[str, Any]) -> None:
        services = front.services
        at = (visit.user.test_clock or services.clock()).isoformat()
        with services.database.tenant(visit.tenant_id) as connection:
            change = steps.append_step(
                connection, visit.tenant_id, {"at": at, **step}, visit.user.actor, now=services.clock()
            )
        services.masters.project(services.database, visit.tenant_id, up_to=change.number)

    def page(
        visit: Visit, area: str, code: str, values: Mapping[str, str], wrong: Mapping[str, str], per: str | None = None
    ) -> Response:
        return front.page(
            visit, "contracts/references.html", status=422 if wrong else 200, area=area, code=code, values=values,
            wrong=wrong, per=per, choices=DOCUMENT_PER, length_max=REFERENCE_LENGTH_MAX, back=path_of(area, code),
            tenant_per=front.master(visit).tenant.document_per,
        )  # fmt: skip

    def subscription_of(visit: Visit, code: str) -> Subscription:
        visit.need("contracts:write")
        one = front.master(visit).subscriptions.get(code)
        if one is None:
            raise NotFound(code)
        return one

    @router.get("/subscriptions/{code:path}/references")
    def subscription_form(visit: Annotated[Visit, visitor], code: str) -> Response:
        one = subscription_of(visit, code)
        return page(visit, "subscriptions", code, values_of(one), {})

    @router.post("/subscriptions/{code:path}/references")
    def change_subscription(
        visit: Annotated[Visit, visitor],
        code: str,
        order_reference: Text = "",
        cost_centre: Text = "",
        buyer_reference: Text = "",
        leitweg_id: Text = "",
        form_token: Token = "",
    ) -> Response:
        one = subscription_of(visit, code)
        front.check_form(visit, form_token)
        given = (order_reference, cost_centre, buyer_reference, leitweg_id)
        values = {key: text.strip() for key, text in zip(KEYS, given, strict=True)}
        try:
            write(visit, {"references": {"subscription": one.code, **values}})
        except InvalidInput as error:
            return page(visit, "subscriptions", code, values, _wrong(error))
        return front.go(visit, path_of("subscriptions", code) + "#on-documents")

    @router.get("/customers/{code:path}/references")
    def customer_form(visit: Annotated[Visit, visitor], code: str) -> Response:
        visit.need("contracts:write")
        one = front.master(visit).customer(code)
        values = {key: str(one.form.get(key) or "") for key in KEYS}
        return page(visit, "customers", code, values, {}, str(one.form.get("document_per") or ""))

    @router.post("/customers/{code:path}/references")
    def change_customer(
        visit: Annotated[Visit, visitor],
        code: str,
        document_per: Annotated[str, Form(max_length=40)] = "",
        order_reference: Text = "",
        cost_centre: Text = "",
        buyer_reference: Text = "",
        leitweg_id: Text = "",
        form_token: Token = "",
    ) -> Response:
        visit.need("contracts:write")
        front.check_form(visit, form_token)
        one = front.master(visit).customer(code)
        given = (order_reference, cost_centre, buyer_reference, leitweg_id)
        values = {key: text.strip() for key, text in zip(KEYS, given, strict=True)}
        # What is empty now and was before is not said: a form of old keeps what it never had.
        said = {key: text or None for key, text in values.items() if text or one.form.get(key)}
        try:
            write(visit, {"customer": {"code": one.code, "document_per": document_per or None, **said}})
        except InvalidInput as error:
            return page(visit, "customers", code, values, _wrong(error), document_per)
        return front.go(visit, path_of("customers", code) + "#data")

    return router


def values_of(one: Subscription) -> dict[str, str]:
    """The references of a subscription as they were set last."""
    last = one.references[-1] if one.references else None
    return {key: getattr(last, key) if last else "" for key in KEYS}


def facts_of_subscription(one: Subscription, t: Texts) -> list[tuple[str, str]]:
    return [(t(f"references.{key}"), value) for key, value in values_of(one).items() if value]


def facts_of_customer(customer: Customer, tenant_per: str, t: Texts) -> list[tuple[str, str]]:
    """What goes on one document of his, whether he or the tenant says so, and his mandate with its account masked."""
    per = customer.form.get("document_per")
    said = t.word("document_per", str(per or tenant_per))
    facts = [(t("references.per"), said if per else t("references.per_tenant", per=said))]
    mandate: Mapping[str, str] = customer.form.get("mandate") or {}
    if mandate:
        iban = mandate["iban"].replace(" ", "")
        words = t("references.mandate_words", reference=mandate["reference"], iban=f"{iban[:4]} … {iban[-4:]}")
        facts.append((t("references.mandate"), words))
    endpoint = customer.form.get("endpoint")
    if isinstance(endpoint, Mapping) and endpoint.get("id"):
        facts.append((t("references.endpoint"), f"{endpoint.get('scheme') or ''}:{endpoint['id']}".lstrip(":")))
    return facts


def _wrong(error: InvalidInput) -> dict[str, str]:
    return {one.pointer.rpartition("/")[2]: one.detail for one in error.errors}
