"""Seller and buyer of an invoice, from the forms of a tenant's legal entity and of a customer.

The forms have been checked where they came in; here only their names are changed to the standard's. A customer
without an address has none on its documents either, and then gets no e-invoice but a PDF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from billing.einvoice.addresses import id_and_scheme
from billing.einvoice.model import Address, Contact, Identifier, Party, Transfer

PDF_ONLY, FACTUR_X = "none", "factur-x"  # a customer's `einvoice`
E_INVOICES = (PDF_ONLY, FACTUR_X)


@dataclass(frozen=True)
class Seller:
    """A legal entity as it signs its documents: the party, its accounts, and what only the letterhead shows."""

    party: Party
    accounts: tuple[Transfer, ...] = ()
    bank_name: str | None = None
    directors: str | None = None
    court: str | None = None
    logo: str | None = None  # SVG text
    creditor_id: str | None = None  # BT-90: who may collect by SEPA direct debit


def seller_of(entity: Mapping[str, Any], country: str) -> Seller:
    """The seller from `legal_entity` of a tenant's form; `country` is the tenant's, where the entity names none."""
    directors, court = _text(entity, "directors"), _text(entity, "court")
    legal = _text(entity, "legal_id")
    bank = _inner(entity, "bank")
    iban = _text(bank, "iban")
    name = str(entity["name"])
    party = Party(
        name=name,
        address=_address(entity, country),
        legal_id=Identifier(legal) if legal else None,
        legal_info=", ".join(part for part in (directors, court) if part) or None,
        vat_id=_compact(_text(entity, "vat_id")),
        tax_number=_text(entity, "tax_number"),
        endpoint=_identifier(entity.get("endpoint")),
        contact=_contact(entity),
    )
    account = Transfer(iban.replace(" ", ""), name, _compact(_text(bank, "bic"))) if iban else None
    return Seller(
        party=party,
        accounts=(account,) if account else (),
        bank_name=_text(bank, "name"),
        directors=directors,
        court=court,
        logo=_text(entity, "logo"),
        creditor_id=_compact(_text(entity, "creditor_id")),
    )


def buyer_of(customer: Mapping[str, Any], country: str) -> Party:
    """The buyer from a customer's form; BT-46 is the id that the buyer knows himself by, else the customer number."""
    legal = _text(customer, "legal_id")
    code = str(customer["code"])
    return Party(
        name=_text(customer, "name") or code,
        address=_address(customer, country),
        ids=_ids(customer) or (Identifier(code),),
        legal_id=Identifier(legal) if legal else None,
        vat_id=_compact(_text(customer, "vat_id")),
        tax_number=_text(customer, "tax_number"),
        endpoint=_identifier(customer.get("endpoint")),
        contact=_contact(customer),
    )


def wants_e_invoice(customer: Mapping[str, Any], seller: Party, buyer: Party, minor_digits: int) -> bool:
    """The customer's own setting; without one an e-invoice where data and currency allow it."""
    setting = _text(customer, "einvoice")
    if setting is not None:
        return setting != PDF_ONLY
    identified = bool(seller.vat_id or seller.legal_id or seller.ids)
    addressed = bool((buyer.address.city or buyer.address.street) and buyer.address.country and seller.address.country)
    return identified and addressed and minor_digits <= 2


def _ids(form: Mapping[str, Any]) -> tuple[Identifier, ...]:
    """The first id of a form's list that can be read: BT-46 has one place."""
    given: object = form.get("ids")
    found = [_identifier(one) for one in cast(list[object], given)] if isinstance(given, list) else []
    return tuple(one for one in found if one is not None)[:1]


def _identifier(value: object) -> Identifier | None:
    found = id_and_scheme(value)
    return Identifier(*found) if found else None


def _inner(form: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = form.get(key)
    return cast(Mapping[str, Any], found) if isinstance(found, Mapping) else {}


def _text(form: Mapping[str, Any], key: str) -> str | None:
    """Text of one key; a list of names becomes one text, blank is nothing."""
    found: object = form.get(key)
    if isinstance(found, list):
        found = ", ".join(str(one) for one in cast(list[object], found))
    return str(found).strip() or None if found is not None else None


def _compact(text: str | None) -> str | None:
    return text.replace(" ", "") if text else None


def _address(form: Mapping[str, Any], country: str) -> Address:
    address = _inner(form, "address")
    return Address(
        country=_text(address, "country") or _text(form, "country") or country,
        street=_text(address, "street"),
        line_two=_text(address, "line_two"),
        line_three=_text(address, "line_three"),
        city=_text(address, "city"),
        post_code=_text(address, "post_code"),
        subdivision=_text(address, "subdivision"),
    )


def _contact(form: Mapping[str, Any]) -> Contact | None:
    contact = _inner(form, "contact")
    name, phone, email = _text(contact, "name"), _text(contact, "phone"), _text(contact, "email")
    return Contact(name, phone, email) if name or phone or email else None
