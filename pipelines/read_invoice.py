"""An incoming e-invoice back into the invoice of `billing/einvoice/model.py`: CII and UBL, and what lies in a PDF.

Owns where each business term stands in the two syntaxes. XML of strangers is read without entities and network, with
bounds on size and depth. What a syntax carries beyond EN 16931 (extensions, sub lines) is not read, but where sums
rest on it; what a profile below it lacks (MINIMUM, BASIC WL: no lines) is missing in the invoice, too.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from lxml import etree

from billing.einvoice.cii import TAX_POINT_CODES
from billing.einvoice.model import Invoice
from billing.einvoice.ubl import NO_ORDER
from billing.errors import FieldError, InvalidInput
from billing.forms import decimal_of

BYTES_MAX = 100 * 1024 * 1024
ATTACHMENTS_MAX = 100
_NAMES = ("factur-x.xml", "zugferd-invoice.xml", "xrechnung.xml", "ZUGFeRD-invoice.xml")
_CII = "urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100"
_UBL = "urn:oasis:names:specification:ubl:schema:xsd:{0}-2"
_CODE_OF = {value: key for key, value in TAX_POINT_CODES.items()}
Form = dict[str, Any]


def read_invoice(data: bytes) -> Invoice:
    """The invoice in a file: PDF with an XML inside, CII or UBL. Raises InvalidInput, naming what is wrong."""
    if len(data) > BYTES_MAX:
        raise _wrong(f"the file has {len(data):,} bytes, {BYTES_MAX:,} are the limit")
    xml = xml_of_pdf(data) if data[:1024].lstrip().startswith(b"%PDF-") else data
    root = _parsed(xml)
    space, name = etree.QName(root).namespace, etree.QName(root).localname
    if space == _CII:
        form = _Cii(root).invoice()
    elif space in (_UBL.format("Invoice"), _UBL.format("CreditNote")):
        form = _Ubl(root).invoice()
    else:
        raise _wrong(f"this is no CII or UBL invoice: its root is {name} of {space or 'no namespace'}")
    return Invoice.from_json(form)


def xml_of_pdf(data: bytes) -> bytes:
    """The e-invoice that is attached to a PDF: by its usual name, or the only XML there is."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        names = [name for name in reader.attachments if name.lower().endswith(".xml")][:ATTACHMENTS_MAX]
        usual = [name for name in names if name.lower() in {one.lower() for one in _NAMES}]
        chosen = usual[:1] or (names if len(names) == 1 else [])
        if chosen:
            return bytes(reader.attachments[chosen[0]][0])
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _wrong(f"the PDF cannot be read: {error}") from error
    raise _wrong("the PDF carries no e-invoice" if not names else f"the PDF carries several XML files: {names[:5]}")


def _parsed(xml: bytes) -> Any:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise _wrong(f"this is no XML: {error}") from error
    if root.getroottree().docinfo.doctype:
        raise _wrong("an e-invoice has no document type declaration")
    return root


def _wrong(detail: str) -> InvalidInput:
    return InvalidInput(detail, errors=[FieldError("", detail)])


class _Tree:
    """Reading by path with one prefix per kind of element; a missing element is None."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def all(self, element: Any, path: str) -> list[Any]:
        return [] if element is None else element.findall(self.path(path), self.spaces)

    def one(self, element: Any, path: str) -> Any:
        return None if element is None else element.find(self.path(path), self.spaces)

    def text(self, element: Any, path: str) -> str | None:
        found = self.one(element, path)
        return None if found is None or found.text is None else found.text.strip() or None

    def terms(self, element: Any, path: str) -> str | None:
        """BT-20 by lines: a discount for early payment is a line that begins with # and must end (BR-DE-18)."""
        text = self.text(element, path)
        if text is None:
            return None
        lines = [line.strip() for line in text.splitlines()]
        return "\n".join(lines) + ("\n" if lines[-1].startswith("#") else "")

    spaces: Mapping[str, str] = MappingProxyType({})

    def path(self, path: str) -> str:
        return path


def _set(form: Form, **values: Any) -> Form:
    """Put down what is there; nothing that is empty."""
    form.update({key: value for key, value in values.items() if value not in (None, "", [], {})})
    return form


def _without_tax_number(buyer: Form | None) -> Form | None:
    """EN 16931 knows a tax number (BT-32) of sellers only."""
    return None if buyer is None else {key: value for key, value in buyer.items() if key != "tax_number"}


def _identifier(element: Any) -> Form | None:
    if element is None or element.text is None or not element.text.strip():
        return None
    return _set({"id": element.text.strip()}, scheme=element.get("schemeID"))


# -- CII ---------------------------------------------------------------------------------------------------------------


class _Cii(_Tree):
    spaces = {  # noqa: RUF012 - never changed
        "rsm": _CII,
        "qdt": "urn:un:unece:uncefact:data:standard:QualifiedDataType:100",
        "ram": "urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100",
        "udt": "urn:un:unece:uncefact:data:standard:UnqualifiedDataType:100",
    }

    def path(self, path: str) -> str:
        return "/".join(part if ":" in part or part == "." else f"ram:{part}" for part in path.split("/"))

    def day(self, element: Any, path: str) -> str | None:
        found = self.one(element, path)
        text = None if found is None or len(found) == 0 or found[0].text is None else found[0].text.strip()
        if text is None:
            return None
        return f"{text[:4]}-{text[4:6]}-{text[6:8]}" if len(text) == 8 and text.isdigit() else text

    def invoice(self) -> Form:
        root = self._root
        document = self.one(root, "rsm:ExchangedDocument")
        context = self.one(root, "rsm:ExchangedDocumentContext")
        trade = self.one(root, "rsm:SupplyChainTradeTransaction")
        agreement = self.one(trade, "ApplicableHeaderTradeAgreement")
        delivery = self.one(trade, "ApplicableHeaderTradeDelivery")
        settlement = self.one(trade, "ApplicableHeaderTradeSettlement")
        terms = self.all(settlement, "SpecifiedTradePaymentTerms")
        taxes = self.all(settlement, "ApplicableTradeTax")
        code = next((self.text(tax, "DueDateTypeCode") for tax in taxes if self.text(tax, "DueDateTypeCode")), None)
        currency = self.text(settlement, "InvoiceCurrencyCode")
        form = _set(
            {},
            number=self.text(document, "ID"),
            issued_on=self.day(document, "IssueDateTime"),
            type_code=self.text(document, "TypeCode"),
            currency=currency,
            seller=self._party(self.one(agreement, "SellerTradeParty")),
            buyer=_without_tax_number(self._party(self.one(agreement, "BuyerTradeParty"))),
            totals=self._totals(self.one(settlement, "SpecifiedTradeSettlementHeaderMonetarySummation"), currency),
            taxes=[self._tax(tax) for tax in taxes],
            lines=[self._line(line) for line in self._billed(trade)],
            profile=self.text(context, "GuidelineSpecifiedDocumentContextParameter/ID"),
            process=self.text(context, "BusinessProcessSpecifiedDocumentContextParameter/ID"),
            tax_currency=self.text(settlement, "TaxCurrencyCode"),
            tax_point_on=next((day for tax in taxes if (day := self.day(tax, "TaxPointDate"))), None),
            tax_point_code=_CODE_OF.get(code, code) if code else None,
            due_on=max((day for one in terms if (day := self.day(one, "DueDateDateTime"))), default=None),
            buyer_reference=self.text(agreement, "BuyerReference"),
            project=self.text(agreement, "SpecifiedProcuringProject/ID"),
            contract=self.text(agreement, "ContractReferencedDocument/IssuerAssignedID"),
            order=self.text(agreement, "BuyerOrderReferencedDocument/IssuerAssignedID"),
            sales_order=self.text(agreement, "SellerOrderReferencedDocument/IssuerAssignedID"),
            receiving_advice=self.text(delivery, "ReceivingAdviceReferencedDocument/IssuerAssignedID"),
            despatch_advice=self.text(delivery, "DespatchAdviceReferencedDocument/IssuerAssignedID"),
            buyer_accounting_reference=self.text(settlement, "ReceivableSpecifiedTradeAccountingAccount/ID"),
            payment_terms="\n".join(text for one in terms if (text := self.terms(one, "Description"))),
            notes=[
                _set({"text": self.text(note, "Content")}, code=self.text(note, "SubjectCode"))
                for note in self.all(document, "IncludedNote")
                if self.text(note, "Content")
            ],
            preceding=self._preceding(settlement),
            payee=self._payee(self.one(settlement, "PayeeTradeParty")),
            tax_representative=self._representative(self.one(agreement, "SellerTaxRepresentativeTradeParty")),
            delivery=self._delivery(delivery),
            period=self._period(self.one(settlement, "BillingSpecifiedPeriod")),
            payment=self._payment(settlement, terms),
            allowances=[self._allowance(one) for one in self._allowances(settlement, charge=False)],
            charges=[
                *(self._allowance(one) for one in self._allowances(settlement, charge=True)),
                *(self._service_charge(one) for one in self.all(settlement, "SpecifiedLogisticsServiceCharge")),
            ],
        )
        form.setdefault("lines", [])
        form.setdefault("taxes", [])
        if form.get("buyer"):
            form["buyer"].setdefault("address", {})
        return self._documents(form, agreement)

    def _preceding(self, settlement: Any) -> list[Form]:
        """BG-3. Factur-X EXTENDED names the invoices of what was prepaid (BG-X-45) beside it."""
        paths = ("InvoiceReferencedDocument", "SpecifiedAdvancePayment/InvoiceSpecifiedReferencedDocument")
        found: dict[str | None, Form] = {}
        for one in (one for path in paths for one in self.all(settlement, path)):
            number = self.text(one, "IssuerAssignedID")
            found.setdefault(number, _set({"number": number}, issued_on=self.day(one, "FormattedIssueDateTime")))
        return list(found.values())

    def _billed(self, trade: Any) -> Iterator[Any]:
        """Lines that count: in Factur-X EXTENDED some are headings (GROUP) or parts (INFORMATION) that no sum has."""
        for line in self.all(trade, "IncludedSupplyChainTradeLineItem"):
            kind = self.text(line, "AssociatedDocumentLineDocument/LineStatusReasonCode")
            if kind not in ("GROUP", "INFORMATION"):
                yield line

    def _service_charge(self, one: Any) -> Form:
        """Freight and the like of Factur-X EXTENDED (BG-X-42): part of BT-108, so here a charge (BG-21)."""
        return _set(
            {},
            amount=self.text(one, "AppliedAmount"),
            reason=self.text(one, "Description"),
            tax_category=self.text(one, "AppliedTradeTax/CategoryCode"),
            tax_percent=self.text(one, "AppliedTradeTax/RateApplicablePercent"),
        )

    def _documents(self, form: Form, agreement: Any) -> Form:
        attachments: list[Form] = []
        for one in self.all(agreement, "AdditionalReferencedDocument"):
            kind, number = self.text(one, "TypeCode"), self.text(one, "IssuerAssignedID")
            if kind == "50":
                _set(form, tender=number)
            elif kind == "130":
                form["invoiced_object"] = _set({"id": number}, scheme=self.text(one, "ReferenceTypeCode"))
            else:
                content = self.one(one, "AttachmentBinaryObject")
                attachments.append(
                    _set(
                        {"ref": number},
                        uri=self.text(one, "URIID"),
                        text=self.text(one, "Name"),
                        **_binary(content),
                    )
                )
        return _set(form, attachments=attachments)

    def _ids(self, party: Any) -> list[Form]:
        found = [*self.all(party, "ID"), *self.all(party, "GlobalID")]
        return [one for one in map(_identifier, found) if one is not None]

    def _party(self, party: Any) -> Form | None:
        if party is None:
            return None
        contact = self.one(party, "DefinedTradeContact")
        numbers = {one.get("schemeID"): one.text for one in self.all(party, "SpecifiedTaxRegistration/ID")}
        return _set(
            {},
            name=self.text(party, "Name"),
            address=self._address(self.one(party, "PostalTradeAddress")),
            trading_name=self.text(party, "SpecifiedLegalOrganization/TradingBusinessName"),
            ids=self._ids(party),
            legal_id=_identifier(self.one(party, "SpecifiedLegalOrganization/ID")),
            legal_info=self.text(party, "Description"),
            vat_id=numbers.get("VA"),
            tax_number=numbers.get("FC"),
            endpoint=_identifier(self.one(party, "URIUniversalCommunication/URIID")),
            contact=_set(
                {},
                name=self.text(contact, "PersonName") or self.text(contact, "DepartmentName"),
                phone=self.text(contact, "TelephoneUniversalCommunication/CompleteNumber"),
                email=self.text(contact, "EmailURIUniversalCommunication/URIID"),
            ),
        )

    def _address(self, address: Any) -> Form | None:
        if address is None:
            return None
        return _set(
            {},
            country=self.text(address, "CountryID"),
            street=self.text(address, "LineOne"),
            line_two=self.text(address, "LineTwo"),
            line_three=self.text(address, "LineThree"),
            city=self.text(address, "CityName"),
            post_code=self.text(address, "PostcodeCode"),
            subdivision=self.text(address, "CountrySubDivisionName"),
        )

    def _payee(self, payee: Any) -> Form | None:
        if payee is None:
            return None
        ids = self._ids(payee)
        legal = _identifier(self.one(payee, "SpecifiedLegalOrganization/ID"))
        return _set({"name": self.text(payee, "Name")}, id=ids[0] if ids else None, legal_id=legal)

    def _representative(self, one: Any) -> Form | None:
        if one is None:
            return None
        return _set(
            {},
            name=self.text(one, "Name"),
            vat_id=self.text(one, "SpecifiedTaxRegistration/ID"),
            address=self._address(self.one(one, "PostalTradeAddress")),
        )

    def _delivery(self, delivery: Any) -> Form | None:
        ship_to = self.one(delivery, "ShipToTradeParty")
        ids = self._ids(ship_to)
        return _set(
            {},
            name=self.text(ship_to, "Name"),
            location=ids[0] if ids else None,
            delivered_on=self.day(delivery, "ActualDeliverySupplyChainEvent/OccurrenceDateTime"),
            address=self._address(self.one(ship_to, "PostalTradeAddress")),
        )

    def _period(self, period: Any) -> Form | None:
        if period is None:
            return None
        return _set({}, start=self.day(period, "StartDateTime"), end=self.day(period, "EndDateTime"))

    def _payment(self, settlement: Any, terms: list[Any]) -> Form | None:
        means = self.all(settlement, "SpecifiedTradeSettlementPaymentMeans")
        if not means:
            return None
        first = means[0]
        transfer: list[Form] = []
        for one in means:
            account = self.one(one, "PayeePartyCreditorFinancialAccount")
            number = self.text(account, "IBANID") or self.text(account, "ProprietaryID")
            if number:
                bic = self.text(one, "PayeeSpecifiedCreditorFinancialInstitution/BICID")
                transfer.append(_set({"iban": number}, name=self.text(account, "AccountName"), bic=bic))
        card = self.one(first, "ApplicableTradeSettlementFinancialCard")
        debit = {
            "mandate": next((text for one in terms if (text := self.text(one, "DirectDebitMandateID"))), None),
            "creditor_id": self.text(settlement, "CreditorReferenceID"),
            "iban": self.text(first, "PayerPartyDebtorFinancialAccount/IBANID"),
        }
        return _set(
            {},
            code=self.text(first, "TypeCode"),
            text=self.text(first, "Information"),
            reference=self.text(settlement, "PaymentReference"),
            transfer=transfer,
            card=_set({}, pan_last=self.text(card, "ID"), holder=self.text(card, "CardholderName")),
            debit=_set({}, **debit),
        )

    def _tax(self, tax: Any) -> Form:
        return _set(
            {},
            base=self.text(tax, "BasisAmount"),
            amount=self.text(tax, "CalculatedAmount"),
            category=self.text(tax, "CategoryCode"),
            percent=self.text(tax, "RateApplicablePercent"),
            reason=self.text(tax, "ExemptionReason"),
            reason_code=self.text(tax, "ExemptionReasonCode"),
        )

    def _allowances(self, element: Any, *, charge: bool) -> Iterator[Any]:
        for one in self.all(element, "SpecifiedTradeAllowanceCharge"):
            if (self.text(one, "ChargeIndicator/udt:Indicator") == "true") is charge:
                yield one

    def _allowance(self, one: Any) -> Form:
        return _set(
            {},
            amount=self.text(one, "ActualAmount"),
            reason=self.text(one, "Reason"),
            reason_code=self.text(one, "ReasonCode"),
            base=self.text(one, "BasisAmount"),
            percent=self.text(one, "CalculationPercent"),
            tax_category=self.text(one, "CategoryTradeTax/CategoryCode"),
            tax_percent=self.text(one, "CategoryTradeTax/RateApplicablePercent"),
        )

    def _totals(self, totals: Any, currency: str | None) -> Form:
        taxes = self.all(totals, "TaxTotalAmount")
        own = [one.text for one in taxes if one.get("currencyID") in (None, currency)]
        other = [one.text for one in taxes if one.get("currencyID") not in (None, currency)]
        return _set(
            {},
            # MINIMUM has neither BT-106 nor allowances and charges; then it is BT-109 (BR-CO-13).
            lines=self.text(totals, "LineTotalAmount") or self.text(totals, "TaxBasisTotalAmount"),
            net=self.text(totals, "TaxBasisTotalAmount"),
            gross=self.text(totals, "GrandTotalAmount"),
            due=self.text(totals, "DuePayableAmount"),
            tax=own[0] if own else None,
            allowances=self.text(totals, "AllowanceTotalAmount"),
            charges=self.text(totals, "ChargeTotalAmount"),
            tax_in_tax_currency=other[0] if other else None,
            prepaid=self.text(totals, "TotalPrepaidAmount"),
            rounding=self.text(totals, "RoundingAmount"),
        )

    def _line(self, line: Any) -> Form:
        document = self.one(line, "AssociatedDocumentLineDocument")
        product = self.one(line, "SpecifiedTradeProduct")
        agreement = self.one(line, "SpecifiedLineTradeAgreement")
        settlement = self.one(line, "SpecifiedLineTradeSettlement")
        quantity = self.one(line, "SpecifiedLineTradeDelivery/BilledQuantity")
        gross, net = (self.one(agreement, f"{kind}PriceProductTradePrice") for kind in ("Gross", "Net"))
        invoiced = next(
            (
                one
                for one in self.all(settlement, "AdditionalReferencedDocument")
                if self.text(one, "TypeCode") in (None, "130")
            ),
            None,
        )
        tax = self.one(settlement, "ApplicableTradeTax")
        return _set(
            {},
            id=self.text(document, "LineID"),
            quantity=self.text(line, "SpecifiedLineTradeDelivery/BilledQuantity"),
            unit=None if quantity is None else quantity.get("unitCode"),
            net=self.text(settlement, "SpecifiedTradeSettlementLineMonetarySummation/LineTotalAmount"),
            price=self.text(net, "ChargeAmount"),
            tax=_set({"category": self.text(tax, "CategoryCode")}, percent=self.text(tax, "RateApplicablePercent")),
            name=self.text(product, "Name"),
            note=self.text(document, "IncludedNote/Content"),
            object=_set(
                {}, id=self.text(invoiced, "IssuerAssignedID"), scheme=self.text(invoiced, "ReferenceTypeCode")
            ),
            order_line=self.text(agreement, "BuyerOrderReferencedDocument/LineID"),
            accounting_reference=self.text(settlement, "ReceivableSpecifiedTradeAccountingAccount/ID"),
            period=self._period(self.one(settlement, "BillingSpecifiedPeriod")),
            allowances=[self._allowance(one) for one in self._allowances(settlement, charge=False)],
            charges=[self._allowance(one) for one in self._allowances(settlement, charge=True)],
            gross_price=self.text(gross, "ChargeAmount"),
            discount=self.text(gross, "AppliedTradeAllowanceCharge/ActualAmount"),
            base_quantity=self.text(net, "BasisQuantity") or self.text(gross, "BasisQuantity"),
            description=self.text(product, "Description"),
            seller_sku=self.text(product, "SellerAssignedID"),
            buyer_sku=self.text(product, "BuyerAssignedID"),
            gtin=_identifier(self.one(product, "GlobalID")),
            classes=[_class(one) for one in self.all(product, "DesignatedProductClassification/ClassCode")],
            origin=self.text(product, "OriginTradeCountry/ID"),
            attributes=[
                {"name": self.text(one, "Description"), "value": self.text(one, "Value")}
                for one in self.all(product, "ApplicableProductCharacteristic")
            ],
        )


def _class(element: Any) -> Form:
    return _set(
        {"code": (element.text or "").strip()}, list=element.get("listID"), version=element.get("listVersionID")
    )


def _binary(content: Any) -> Form:
    if content is None:
        return {}
    try:
        data = base64.b64decode("".join((content.text or "").split()), validate=True)
    except binascii.Error as error:
        raise _wrong("an attachment is not base64") from error
    return {
        "bytes": base64.b64encode(data).decode(), "mime": content.get("mimeCode"), "name": content.get("filename")
    }  # fmt: skip


def _gross(price: str | None, discount: str | None) -> str | None:
    """BT-148 where a discount stands alone: the price is what is left of it (BT-146 = BT-148 - BT-147)."""
    one, other = decimal_of(price), decimal_of(discount)
    return None if one is None or other is None else format(one + other, "f")


# -- UBL ---------------------------------------------------------------------------------------------------------------


class _Ubl(_Tree):
    spaces = {  # noqa: RUF012 - never changed
        "cac": _UBL.format("CommonAggregateComponents"),
        "cbc": _UBL.format("CommonBasicComponents"),
    }

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self._kind = etree.QName(root).localname

    def path(self, path: str) -> str:
        """The last part is a leaf, the others are nodes; a trailing slash says that all are nodes."""
        *nodes, leaf = path.split("/")
        return "/".join([*(f"cac:{part}" for part in nodes), *([f"cbc:{leaf}"] if leaf else [])])

    def invoice(self) -> Form:
        root, kind = self._root, self._kind
        period = self.one(root, "InvoicePeriod/")
        totals = self.one(root, "LegalMonetaryTotal/")
        tax_totals = self.all(root, "TaxTotal/")
        main = next((one for one in tax_totals if self.all(one, "TaxSubtotal/")), tax_totals[0] if tax_totals else None)
        second = next((one for one in tax_totals if one is not main), None)
        means = self.all(root, "PaymentMeans/")
        order, sales_order = self.text(root, "OrderReference/ID"), self.text(root, "OrderReference/SalesOrderID")
        seller, creditor = self._party(self.one(root, "AccountingSupplierParty/Party/"))
        payee, other_creditor = self._payee(self.one(root, "PayeeParty/"))
        form = _set(
            {},
            number=self.text(root, "ID"),
            issued_on=self.text(root, "IssueDate"),
            type_code=self.text(root, f"{kind}TypeCode"),
            currency=self.text(root, "DocumentCurrencyCode"),
            seller=seller,
            buyer=_without_tax_number(self._party(self.one(root, "AccountingCustomerParty/Party/"))[0]),
            totals=_set(
                {},
                lines=self.text(totals, "LineExtensionAmount"),
                net=self.text(totals, "TaxExclusiveAmount"),
                gross=self.text(totals, "TaxInclusiveAmount"),
                due=self.text(totals, "PayableAmount"),
                tax=self.text(main, "TaxAmount"),
                allowances=self.text(totals, "AllowanceTotalAmount"),
                charges=self.text(totals, "ChargeTotalAmount"),
                tax_in_tax_currency=self.text(second, "TaxAmount"),
                prepaid=self.text(totals, "PrepaidAmount"),
                rounding=self.text(totals, "PayableRoundingAmount"),
            ),
            taxes=[self._tax(one) for one in self.all(main, "TaxSubtotal/")],
            lines=[self._line(one) for one in self.all(root, f"{kind}Line/")],
            profile=self.text(root, "CustomizationID"),
            process=self.text(root, "ProfileID"),
            tax_currency=self.text(root, "TaxCurrencyCode"),
            tax_point_on=self.text(root, "TaxPointDate"),
            tax_point_code=self.text(period, "DescriptionCode"),
            due_on=self.text(root, "DueDate")
            or next((day for one in means if (day := self.text(one, "PaymentDueDate"))), None),
            buyer_reference=self.text(root, "BuyerReference"),
            project=self.text(root, "ProjectReference/ID"),
            contract=self.text(root, "ContractDocumentReference/ID"),
            order=None if order == NO_ORDER and sales_order else order,
            sales_order=sales_order,
            receiving_advice=self.text(root, "ReceiptDocumentReference/ID"),
            despatch_advice=self.text(root, "DespatchDocumentReference/ID"),
            tender=self.text(root, "OriginatorDocumentReference/ID"),
            buyer_accounting_reference=self.text(root, "AccountingCost"),
            payment_terms=self.terms(root, "PaymentTerms/Note"),
            notes=[_note(one.text.strip()) for one in self.all(root, "Note") if one.text and one.text.strip()],
            preceding=[
                _set({"number": self.text(one, "ID")}, issued_on=self.text(one, "IssueDate"))
                for one in self.all(root, "BillingReference/InvoiceDocumentReference/")
            ],
            payee=payee,
            tax_representative=self._representative(self.one(root, "TaxRepresentativeParty/")),
            delivery=self._delivery(self.one(root, "Delivery/")),
            period=self._period(period),
            payment=self._payment(means, other_creditor or creditor),
            allowances=[self._allowance(one) for one in self._allowances(root, charge=False)],
            charges=[self._allowance(one) for one in self._allowances(root, charge=True)],
        )
        return self._documents(form)

    def _documents(self, form: Form) -> Form:
        attachments: list[Form] = []
        for one in self.all(self._root, "AdditionalDocumentReference/"):
            kind = self.text(one, "DocumentTypeCode")
            if kind == "130":
                form["invoiced_object"] = _identifier(self.one(one, "ID"))
            elif kind == "50":
                _set(form, project=self.text(one, "ID"))
            else:
                attachments.append(
                    _set(
                        {"ref": self.text(one, "ID")},
                        text=self.text(one, "DocumentDescription"),
                        uri=self.text(one, "Attachment/ExternalReference/URI"),
                        **_binary(self.one(one, "Attachment/EmbeddedDocumentBinaryObject")),
                    )
                )
        return _set(form, attachments=attachments)

    def _party(self, party: Any) -> tuple[Form | None, str | None]:
        """The party, and the creditor's identifier of a direct debit, which stands among its ids."""
        if party is None:
            return None, None
        found = [one for one in map(_identifier, self.all(party, "PartyIdentification/ID")) if one is not None]
        creditor = next((one["id"] for one in found if one.get("scheme") == "SEPA"), None)
        contact = self.one(party, "Contact/")
        numbers: dict[bool, str | None] = {}
        for one in self.all(party, "PartyTaxScheme/"):
            numbers.setdefault(self.text(one, "TaxScheme/ID") == "VAT", self.text(one, "CompanyID"))
        form = _set(
            {},
            name=self.text(party, "PartyLegalEntity/RegistrationName"),
            address=self._address(self.one(party, "PostalAddress/")),
            trading_name=self.text(party, "PartyName/Name"),
            ids=[one for one in found if one.get("scheme") != "SEPA"],
            legal_id=_identifier(self.one(party, "PartyLegalEntity/CompanyID")),
            legal_info=self.text(party, "PartyLegalEntity/CompanyLegalForm"),
            vat_id=numbers.get(True),
            tax_number=numbers.get(False),
            endpoint=_identifier(self.one(party, "EndpointID")),
            contact=_set(
                {},
                name=self.text(contact, "Name"),
                phone=self.text(contact, "Telephone"),
                email=self.text(contact, "ElectronicMail"),
            ),
        )
        return form, creditor

    def _address(self, address: Any) -> Form | None:
        if address is None:
            return None
        return _set(
            {},
            country=self.text(address, "Country/IdentificationCode"),
            street=self.text(address, "StreetName"),
            line_two=self.text(address, "AdditionalStreetName"),
            line_three=self.text(address, "AddressLine/Line"),
            city=self.text(address, "CityName"),
            post_code=self.text(address, "PostalZone"),
            subdivision=self.text(address, "CountrySubentity"),
        )

    def _payee(self, payee: Any) -> tuple[Form | None, str | None]:
        if payee is None:
            return None, None
        found = [one for one in map(_identifier, self.all(payee, "PartyIdentification/ID")) if one is not None]
        own = [one for one in found if one.get("scheme") != "SEPA"]
        creditor = next((one["id"] for one in found if one.get("scheme") == "SEPA"), None)
        legal = _identifier(self.one(payee, "PartyLegalEntity/CompanyID"))
        name = self.text(payee, "PartyName/Name")
        return _set({"name": name}, id=own[0] if own else None, legal_id=legal), creditor

    def _representative(self, one: Any) -> Form | None:
        if one is None:
            return None
        return _set(
            {},
            name=self.text(one, "PartyName/Name"),
            vat_id=self.text(one, "PartyTaxScheme/CompanyID"),
            address=self._address(self.one(one, "PostalAddress/")),
        )

    def _delivery(self, delivery: Any) -> Form | None:
        if delivery is None:
            return None
        return _set(
            {},
            name=self.text(delivery, "DeliveryParty/PartyName/Name"),
            location=_identifier(self.one(delivery, "DeliveryLocation/ID")),
            delivered_on=self.text(delivery, "ActualDeliveryDate"),
            address=self._address(self.one(delivery, "DeliveryLocation/Address/")),
        )

    def _period(self, period: Any) -> Form | None:
        return _set({}, start=self.text(period, "StartDate"), end=self.text(period, "EndDate"))

    def _payment(self, means: list[Any], creditor: str | None) -> Form | None:
        if not means:
            return None
        first = means[0]
        code = self.one(first, "PaymentMeansCode")
        transfer = [
            _set(
                {"iban": self.text(one, "PayeeFinancialAccount/ID")},
                name=self.text(one, "PayeeFinancialAccount/Name"),
                bic=self.text(one, "PayeeFinancialAccount/FinancialInstitutionBranch/ID"),
            )
            for one in means
            if self.text(one, "PayeeFinancialAccount/ID")
        ]
        debit = {
            "mandate": self.text(first, "PaymentMandate/ID"),
            "creditor_id": creditor,
            "iban": self.text(first, "PaymentMandate/PayerFinancialAccount/ID"),
        }
        return _set(
            {},
            code=self.text(first, "PaymentMeansCode"),
            text=None if code is None else code.get("name"),
            reference=self.text(first, "PaymentID"),
            transfer=transfer,
            card=_set(
                {},
                pan_last=self.text(first, "CardAccount/PrimaryAccountNumberID"),
                holder=self.text(first, "CardAccount/HolderName"),
            ),
            debit=_set({}, **debit),
        )

    def _tax(self, tax: Any) -> Form:
        return _set(
            {},
            base=self.text(tax, "TaxableAmount"),
            amount=self.text(tax, "TaxAmount"),
            category=self.text(tax, "TaxCategory/ID"),
            percent=self.text(tax, "TaxCategory/Percent"),
            reason=self.text(tax, "TaxCategory/TaxExemptionReason"),
            reason_code=self.text(tax, "TaxCategory/TaxExemptionReasonCode"),
        )

    def _allowances(self, element: Any, *, charge: bool) -> Iterator[Any]:
        for one in self.all(element, "AllowanceCharge/"):
            if (self.text(one, "ChargeIndicator") == "true") is charge:
                yield one

    def _allowance(self, one: Any) -> Form:
        return _set(
            {},
            amount=self.text(one, "Amount"),
            reason=self.text(one, "AllowanceChargeReason"),
            reason_code=self.text(one, "AllowanceChargeReasonCode"),
            base=self.text(one, "BaseAmount"),
            percent=self.text(one, "MultiplierFactorNumeric"),
            tax_category=self.text(one, "TaxCategory/ID"),
            tax_percent=self.text(one, "TaxCategory/Percent"),
        )

    def _line(self, line: Any) -> Form:
        kind = "Credited" if self._kind == "CreditNote" else "Invoiced"
        quantity = self.one(line, f"{kind}Quantity")
        item, price = self.one(line, "Item/"), self.one(line, "Price/")
        tax = self.one(item, "ClassifiedTaxCategory/")
        discount = self.text(price, "AllowanceCharge/Amount")
        gross = self.text(price, "AllowanceCharge/BaseAmount") or _gross(self.text(price, "PriceAmount"), discount)
        return _set(
            {},
            id=self.text(line, "ID"),
            quantity=self.text(line, f"{kind}Quantity"),
            unit=None if quantity is None else quantity.get("unitCode"),
            net=self.text(line, "LineExtensionAmount"),
            price=self.text(price, "PriceAmount"),
            tax=_set({"category": self.text(tax, "ID")}, percent=self.text(tax, "Percent")),
            name=self.text(item, "Name"),
            note=self.text(line, "Note"),
            object=_identifier(self.one(line, "DocumentReference/ID")),
            order_line=self.text(line, "OrderLineReference/LineID"),
            accounting_reference=self.text(line, "AccountingCost"),
            period=self._period(self.one(line, "InvoicePeriod/")),
            allowances=[self._allowance(one) for one in self._allowances(line, charge=False)],
            charges=[self._allowance(one) for one in self._allowances(line, charge=True)],
            gross_price=gross,
            discount=discount,
            base_quantity=self.text(price, "BaseQuantity"),
            description=self.text(item, "Description"),
            seller_sku=self.text(item, "SellersItemIdentification/ID"),
            buyer_sku=self.text(item, "BuyersItemIdentification/ID"),
            gtin=_identifier(self.one(item, "StandardItemIdentification/ID")),
            classes=[_class(one) for one in self.all(item, "CommodityClassification/ItemClassificationCode")],
            origin=self.text(item, "OriginCountry/IdentificationCode"),
            attributes=[
                {"name": self.text(one, "Name"), "value": self.text(one, "Value")}
                for one in self.all(item, "AdditionalItemProperty/")
            ],
        )


def _note(text: str) -> Form:
    """`#AAI#text`: the code of the subject stands before the text."""
    if text.startswith("#") and text[1:4].isalnum() and text[4:5] == "#" and text[5:]:
        return {"text": text[5:], "code": text[1:4]}
    return {"text": text}
