"""UBL 2.1 (EN 16931, XRechnung, Peppol BIS): an invoice in, UTF-8 bytes out; credit notes have a root of their own.

The schema is a tree of sequences, so each function writes its elements in the order of the schema; a right element in
the wrong place fails the XSD and nothing else. No element is ever empty.
"""

from __future__ import annotations

import base64
from datetime import date
from decimal import Decimal

from billing.einvoice.model import (
    Address,
    AllowanceCharge,
    Attachment,
    Delivery,
    Identifier,
    Invoice,
    InvoiceLine,
    LineTax,
    Party,
    Payee,
    Payment,
    Period,
    TaxRepresentative,
    Totals,
)
from billing.einvoice.xml_elements import Elements, quote

CREDIT_NOTE_TYPES = frozenset({"381", "396", "81", "83", "261", "532"})
NO_ORDER = "NA"  # an order's number where only the seller's own is known: UBL wants one (Peppol BIS 3)
_CBC_CAC = Elements("cbc", "cac")
_leaf, _node, _number = _CBC_CAC.leaf, _CBC_CAC.node, _CBC_CAC.number
_PREFIX = "urn:oasis:names:specification:ubl:schema:xsd"


def to_ubl(invoice: Invoice) -> bytes:
    """The invoice as UBL. Amounts with more than two decimals cannot be said in EN 16931 and are refused."""
    return _Writer(invoice).document().encode()


def _day(name: str, value: date | None) -> str:
    return "" if value is None else _leaf(name, value.isoformat())


def _id(name: str, identifier: Identifier | None) -> str:
    return "" if identifier is None else _leaf(name, identifier.id, schemeID=identifier.scheme)


def _address(name: str, address: Address | None) -> str:
    if address is None:
        return ""
    return _node(
        name,
        _leaf("StreetName", address.street),
        _leaf("AdditionalStreetName", address.line_two),
        _leaf("CityName", address.city),
        _leaf("PostalZone", address.post_code),
        _leaf("CountrySubentity", address.subdivision),
        _node("AddressLine", _leaf("Line", address.line_three)),
        _node("Country", _leaf("IdentificationCode", address.country)),
    )


def _period(period: Period | None, code: str | None = None) -> str:
    start = _day("StartDate", period.start) if period else ""
    end = _day("EndDate", period.end) if period else ""
    return _node("InvoicePeriod", start, end, _leaf("DescriptionCode", code))


def _tax_scheme(company: str | None, scheme: str) -> str:
    if company is None:
        return ""
    return _node("PartyTaxScheme", _leaf("CompanyID", company), _node("TaxScheme", _leaf("ID", scheme)))


def _party(party: Party, *, creditor: str | None = None) -> str:
    contact = party.contact
    return _node(
        "Party",
        _id("EndpointID", party.endpoint),
        *(_node("PartyIdentification", _id("ID", one)) for one in party.ids),
        _node("PartyIdentification", _leaf("ID", creditor, schemeID="SEPA")),
        _node("PartyName", _leaf("Name", party.trading_name)),
        _address("PostalAddress", party.address),
        _tax_scheme(party.vat_id, "VAT"),
        _tax_scheme(party.tax_number, "FC"),
        _node(
            "PartyLegalEntity",
            _leaf("RegistrationName", party.name),
            _id("CompanyID", party.legal_id),
            _leaf("CompanyLegalForm", party.legal_info),
        ),
        _node(
            "Contact",
            _leaf("Name", contact.name),
            _leaf("Telephone", contact.phone),
            _leaf("ElectronicMail", contact.email),
        )
        if contact
        else "",
    )


def _payee(payee: Payee | None, creditor: str | None) -> str:
    if payee is None:
        return ""
    return _node(
        "PayeeParty",
        _node("PartyIdentification", _id("ID", payee.id)),
        _node("PartyIdentification", _leaf("ID", creditor, schemeID="SEPA")),
        _node("PartyName", _leaf("Name", payee.name)),
        _node("PartyLegalEntity", _id("CompanyID", payee.legal_id)),
    )


def _representative(one: TaxRepresentative | None) -> str:
    if one is None:
        return ""
    return _node(
        "TaxRepresentativeParty",
        _node("PartyName", _leaf("Name", one.name)),
        _address("PostalAddress", one.address),
        _tax_scheme(one.vat_id, "VAT"),
    )


def _delivery(delivery: Delivery | None) -> str:
    if delivery is None:
        return ""
    return _node(
        "Delivery",
        _day("ActualDeliveryDate", delivery.delivered_on),
        _node("DeliveryLocation", _id("ID", delivery.location), _address("Address", delivery.address)),
        _node("DeliveryParty", _node("PartyName", _leaf("Name", delivery.name))),
    )


def _reference(name: str, number: str | None, kind: str | None = None, scheme: str | None = None) -> str:
    if number is None:
        return ""
    return _node(name, _leaf("ID", number, schemeID=scheme), _leaf("DocumentTypeCode", kind))


def _attachment(attachment: Attachment) -> str:
    content = ""
    if attachment.bytes is not None:
        content = (
            f'<cbc:EmbeddedDocumentBinaryObject mimeCode="{quote(attachment.mime or "application/octet-stream")}"'
            f' filename="{quote(attachment.name or attachment.ref)}">'
            f"{base64.b64encode(attachment.bytes).decode()}</cbc:EmbeddedDocumentBinaryObject>"
        )
    return _node(
        "AdditionalDocumentReference",
        _leaf("ID", attachment.ref),
        _leaf("DocumentDescription", attachment.text),
        _node("Attachment", content, _node("ExternalReference", _leaf("URI", attachment.uri))),
    )


class _Writer:
    """One document: its currency stands at every amount, its root decides some names."""

    def __init__(self, invoice: Invoice) -> None:
        self._invoice = invoice
        self._is_credit = invoice.type_code in CREDIT_NOTE_TYPES
        self._root = "CreditNote" if self._is_credit else "Invoice"

    def document(self) -> str:
        invoice, credit = self._invoice, self._is_credit
        type_code = _leaf(f"{self._root}TypeCode", invoice.type_code)
        due, tax_point = _day("DueDate", invoice.due_on), _day("TaxPointDate", invoice.tax_point_on)
        notes = "".join(_leaf("Note", f"#{one.code}#{one.text}" if one.code else one.text) for one in invoice.notes)
        originator = _reference("OriginatorDocumentReference", invoice.tender)
        contract = _reference("ContractDocumentReference", invoice.contract)
        additional = self._additional()
        creditor = invoice.payment.debit.creditor_id if invoice.payment and invoice.payment.debit else None
        return "".join(
            (
                '<?xml version="1.0" encoding="UTF-8"?>\n',
                f'<{self._root} xmlns="{_PREFIX}:{self._root}-2" xmlns:cac="{_PREFIX}:CommonAggregateComponents-2"',
                f' xmlns:cbc="{_PREFIX}:CommonBasicComponents-2">',
                _leaf("CustomizationID", invoice.profile),
                _leaf("ProfileID", invoice.process),
                _leaf("ID", invoice.number),
                _day("IssueDate", invoice.issued_on),
                tax_point + type_code + notes if credit else due + type_code + notes + tax_point,
                _leaf("DocumentCurrencyCode", invoice.currency),
                _leaf("TaxCurrencyCode", invoice.tax_currency),
                _leaf("AccountingCost", invoice.buyer_accounting_reference),
                _leaf("BuyerReference", invoice.buyer_reference),
                _period(invoice.period, invoice.tax_point_code),
                self._order(),
                *(
                    _node(
                        "BillingReference",
                        _node("InvoiceDocumentReference", _leaf("ID", one.number), _day("IssueDate", one.issued_on)),
                    )
                    for one in invoice.preceding
                ),
                _reference("DespatchDocumentReference", invoice.despatch_advice),
                _reference("ReceiptDocumentReference", invoice.receiving_advice),
                contract + additional + originator if credit else originator + contract + additional,
                "" if credit else _node("ProjectReference", _leaf("ID", invoice.project)),
                _node("AccountingSupplierParty", _party(invoice.seller, creditor=None if invoice.payee else creditor)),
                _node("AccountingCustomerParty", _party(invoice.buyer)),
                _payee(invoice.payee, creditor),
                _representative(invoice.tax_representative),
                _delivery(invoice.delivery),
                self._means(invoice.payment),
                _node("PaymentTerms", _leaf("Note", invoice.payment_terms)),
                *(self._allowance_charge(one, charge=False) for one in invoice.allowances),
                *(self._allowance_charge(one, charge=True) for one in invoice.charges),
                self._taxes(),
                self._totals(invoice.totals),
                *(self._line(line) for line in invoice.lines),
                f"</{self._root}>",
            )
        )

    def _amount(self, name: str, value: Decimal | None, currency: str | None = None) -> str:
        return _CBC_CAC.amount(name, value, currencyID=currency or self._invoice.currency)

    def _order(self) -> str:
        invoice = self._invoice
        order = invoice.order or (NO_ORDER if invoice.sales_order else None)
        return _node("OrderReference", _leaf("ID", order), _leaf("SalesOrderID", invoice.sales_order))

    def _additional(self) -> str:
        invoice, name = self._invoice, "AdditionalDocumentReference"
        invoiced = invoice.invoiced_object
        parts = [_attachment(one) for one in invoice.attachments]
        if invoiced is not None:
            parts.append(_reference(name, invoiced.id, "130", invoiced.scheme))
        if self._is_credit:
            parts.append(_reference(name, invoice.project, "50"))
        return "".join(parts)

    def _means(self, payment: Payment | None) -> str:
        """BG-16: one element per account, because the schema takes one account in each."""
        due = _day("PaymentDueDate", self._invoice.due_on) if self._is_credit else ""
        if payment is None:
            return ""
        reference = _leaf("PaymentID", payment.reference)
        card, debit = payment.card, payment.debit
        inside = (
            _node(
                "CardAccount",
                _leaf("PrimaryAccountNumberID", card.pan_last),
                _leaf("NetworkID", "mapped-from-cii"),
                _leaf("HolderName", card.holder),
            )
            if card
            else ""
        )
        mandate = (
            _node("PaymentMandate", _leaf("ID", debit.mandate), _node("PayerFinancialAccount", _leaf("ID", debit.iban)))
            if debit
            else ""
        )
        accounts = [
            _node(
                "PayeeFinancialAccount",
                _leaf("ID", one.iban),
                _leaf("Name", one.name),
                _node("FinancialInstitutionBranch", _leaf("ID", one.bic)),
            )
            for one in payment.transfer
        ] or [""]
        # Text, day, card and mandate stand once, at the first of them (UBL-SR-45, -46, -55).
        codes = [_leaf("PaymentMeansCode", payment.code, name=payment.text) + due]
        codes += [_leaf("PaymentMeansCode", payment.code)] * (len(accounts) - 1)
        return "".join(
            _node("PaymentMeans", code, reference, *((inside, account, mandate) if place == 0 else (account,)))
            for place, (code, account) in enumerate(zip(codes, accounts, strict=True))
        )

    def _allowance_charge(self, one: AllowanceCharge, *, charge: bool) -> str:
        tax = ""
        if one.tax_category is not None:
            tax = self._category("TaxCategory", LineTax(one.tax_category, one.tax_percent))
        return _node(
            "AllowanceCharge",
            _leaf("ChargeIndicator", str(charge).lower()),
            _leaf("AllowanceChargeReasonCode", one.reason_code),
            _leaf("AllowanceChargeReason", one.reason),
            _number("MultiplierFactorNumeric", one.percent),
            self._amount("Amount", one.amount),
            self._amount("BaseAmount", one.base),
            tax,
        )

    @staticmethod
    def _category(name: str, tax: LineTax) -> str:
        return _node(
            name,
            _leaf("ID", tax.category),
            _number("Percent", None if tax.category == "O" else tax.percent),
            _node("TaxScheme", _leaf("ID", "VAT")),
        )

    def _taxes(self) -> str:
        invoice = self._invoice
        subtotals = [
            _node(
                "TaxSubtotal",
                self._amount("TaxableAmount", tax.base),
                self._amount("TaxAmount", tax.amount),
                _node(
                    "TaxCategory",
                    _leaf("ID", tax.category),
                    # BT-119 stands for O, too (XRechnung DE-14).
                    _number("Percent", tax.percent if tax.percent is not None else Decimal(0)),
                    _leaf("TaxExemptionReasonCode", tax.reason_code),
                    _leaf("TaxExemptionReason", tax.reason),
                    _node("TaxScheme", _leaf("ID", "VAT")),
                ),
            )
            for tax in invoice.taxes
        ]
        total = invoice.totals.tax if invoice.totals.tax is not None else Decimal(0)
        second = self._amount("TaxAmount", invoice.totals.tax_in_tax_currency, invoice.tax_currency)
        return _node("TaxTotal", self._amount("TaxAmount", total), *subtotals) + _node("TaxTotal", second)

    def _totals(self, totals: Totals) -> str:
        return _node(
            "LegalMonetaryTotal",
            self._amount("LineExtensionAmount", totals.lines),
            self._amount("TaxExclusiveAmount", totals.net),
            self._amount("TaxInclusiveAmount", totals.gross),
            self._amount("AllowanceTotalAmount", totals.allowances),
            self._amount("ChargeTotalAmount", totals.charges),
            self._amount("PrepaidAmount", totals.prepaid),
            self._amount("PayableRoundingAmount", totals.rounding),
            self._amount("PayableAmount", totals.due),
        )

    def _line(self, line: InvoiceLine) -> str:
        invoiced = line.object
        allowances = [self._allowance_charge(one, charge=False) for one in line.allowances]
        allowances += [self._allowance_charge(one, charge=True) for one in line.charges]
        return _node(
            f"{self._root}Line",
            _leaf("ID", line.id),
            _leaf("Note", line.note),
            _number("CreditedQuantity" if self._is_credit else "InvoicedQuantity", line.quantity, unitCode=line.unit),
            self._amount("LineExtensionAmount", line.net),
            _leaf("AccountingCost", line.accounting_reference),
            _period(line.period),
            _node("OrderLineReference", _leaf("LineID", line.order_line)),
            _reference("DocumentReference", invoiced.id, "130", invoiced.scheme) if invoiced else "",
            *allowances,
            self._item(line),
            self._price(line),
        )

    def _item(self, line: InvoiceLine) -> str:
        gtin = line.gtin
        return _node(
            "Item",
            _leaf("Description", line.description),
            _leaf("Name", line.name),
            _node("BuyersItemIdentification", _leaf("ID", line.buyer_sku)),
            _node("SellersItemIdentification", _leaf("ID", line.seller_sku)),
            _node("StandardItemIdentification", _leaf("ID", gtin.id, schemeID=gtin.scheme or "0160")) if gtin else "",
            _node("OriginCountry", _leaf("IdentificationCode", line.origin)),
            *(
                _node(
                    "CommodityClassification",
                    _leaf("ItemClassificationCode", one.code, listID=one.list, listVersionID=one.version),
                )
                for one in line.classes
            ),
            self._category("ClassifiedTaxCategory", line.tax),
            *(
                _node("AdditionalItemProperty", _leaf("Name", one.name), _leaf("Value", one.value))
                for one in line.attributes
            ),
        )

    def _price(self, line: InvoiceLine) -> str:
        currency = self._invoice.currency
        discount = ""
        if line.gross_price is not None:
            taken = line.discount if line.discount is not None else line.gross_price - line.price
            discount = _node(
                "AllowanceCharge",
                _leaf("ChargeIndicator", "false"),
                _number("Amount", taken, currencyID=currency),
                _number("BaseAmount", line.gross_price, currencyID=currency),
            )
        return _node(
            "Price",
            _number("PriceAmount", line.price, currencyID=currency),
            _number("BaseQuantity", line.base_quantity, unitCode=line.unit),
            discount,
        )
