"""Where each business term of an invoice stands in CII (UN/CEFACT), Factur-X's extensions included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from billing.einvoice.cii import TAX_POINT_CODES
from pipelines.invoice_tree import (
    Form,
    InvoiceTree,
    binary,
    identifier,
    item_class,
    put_down,
    without_tax_number,
)

CII = "urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100"
_NOT_DEFINED = "1"  # BT-81 of what says how to refer to a payment (BT-83), or whose debit it is, and not how to pay
_CODE_OF = {value: key for key, value in TAX_POINT_CODES.items()}


class CiiInvoice(InvoiceTree):
    spaces = {  # noqa: RUF012 - never changed
        "rsm": CII,
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
        root = self.root
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
        form = put_down(
            {},
            number=self.text(document, "ID"),
            issued_on=self.day(document, "IssueDateTime"),
            type_code=self.text(document, "TypeCode"),
            currency=currency,
            seller=self._party(self.one(agreement, "SellerTradeParty")),
            buyer=without_tax_number(self._party(self.one(agreement, "BuyerTradeParty"))),
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
                put_down({"text": self.text(note, "Content")}, code=self.text(note, "SubjectCode"))
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
            found.setdefault(number, put_down({"number": number}, issued_on=self.day(one, "FormattedIssueDateTime")))
        return list(found.values())

    def _billed(self, trade: Any) -> Iterator[Any]:
        """Lines that count: in Factur-X EXTENDED some are headings (GROUP) or parts (INFORMATION) that no sum has."""
        for line in self.all(trade, "IncludedSupplyChainTradeLineItem"):
            kind = self.text(line, "AssociatedDocumentLineDocument/LineStatusReasonCode")
            if kind not in ("GROUP", "INFORMATION"):
                yield line

    def _service_charge(self, one: Any) -> Form:
        """Freight and the like of Factur-X EXTENDED (BG-X-42): part of BT-108, so here a charge (BG-21)."""
        return put_down(
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
                put_down(form, tender=number)
            elif kind == "130":
                form["invoiced_object"] = put_down({"id": number}, scheme=self.text(one, "ReferenceTypeCode"))
            else:
                content = self.one(one, "AttachmentBinaryObject")
                attachments.append(
                    put_down(
                        {"ref": number},
                        uri=self.text(one, "URIID"),
                        text=self.text(one, "Name"),
                        **binary(content),
                    )
                )
        return put_down(form, attachments=attachments)

    def _ids(self, party: Any) -> list[Form]:
        found = [*self.all(party, "ID"), *self.all(party, "GlobalID")]
        return [one for one in map(identifier, found) if one is not None]

    def _party(self, party: Any) -> Form | None:
        if party is None:
            return None
        contact = self.one(party, "DefinedTradeContact")
        numbers = {one.get("schemeID"): one.text for one in self.all(party, "SpecifiedTaxRegistration/ID")}
        return put_down(
            {},
            name=self.text(party, "Name"),
            address=self._address(self.one(party, "PostalTradeAddress")),
            trading_name=self.text(party, "SpecifiedLegalOrganization/TradingBusinessName"),
            ids=self._ids(party),
            legal_id=identifier(self.one(party, "SpecifiedLegalOrganization/ID")),
            legal_info=self.text(party, "Description"),
            vat_id=numbers.get("VA"),
            tax_number=numbers.get("FC"),
            endpoint=identifier(self.one(party, "URIUniversalCommunication/URIID")),
            contact=put_down(
                {},
                name=self.text(contact, "PersonName") or self.text(contact, "DepartmentName"),
                phone=self.text(contact, "TelephoneUniversalCommunication/CompleteNumber"),
                email=self.text(contact, "EmailURIUniversalCommunication/URIID"),
            ),
        )

    def _address(self, address: Any) -> Form | None:
        if address is None:
            return None
        return put_down(
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
        legal = identifier(self.one(payee, "SpecifiedLegalOrganization/ID"))
        return put_down({"name": self.text(payee, "Name")}, id=ids[0] if ids else None, legal_id=legal)

    def _representative(self, one: Any) -> Form | None:
        if one is None:
            return None
        return put_down(
            {},
            name=self.text(one, "Name"),
            vat_id=self.text(one, "SpecifiedTaxRegistration/ID"),
            address=self._address(self.one(one, "PostalTradeAddress")),
        )

    def _delivery(self, delivery: Any) -> Form | None:
        ship_to = self.one(delivery, "ShipToTradeParty")
        ids = self._ids(ship_to)
        return put_down(
            {},
            name=self.text(ship_to, "Name"),
            location=ids[0] if ids else None,
            delivered_on=self.day(delivery, "ActualDeliverySupplyChainEvent/OccurrenceDateTime"),
            address=self._address(self.one(ship_to, "PostalTradeAddress")),
        )

    def _period(self, period: Any) -> Form | None:
        if period is None:
            return None
        return put_down({}, start=self.day(period, "StartDateTime"), end=self.day(period, "EndDateTime"))

    def _payment(self, settlement: Any, terms: list[Any]) -> Form | None:
        means = self.all(settlement, "SpecifiedTradeSettlementPaymentMeans")
        first = means[0] if means else None
        transfer: list[Form] = []
        for one in means:
            account = self.one(one, "PayeePartyCreditorFinancialAccount")
            number = self.text(account, "IBANID") or self.text(account, "ProprietaryID")
            if number:
                bic = self.text(one, "PayeeSpecifiedCreditorFinancialInstitution/BICID")
                transfer.append(put_down({"iban": number}, name=self.text(account, "AccountName"), bic=bic))
        card = self.one(first, "ApplicableTradeSettlementFinancialCard")
        debit = {
            "mandate": next((text for one in terms if (text := self.text(one, "DirectDebitMandateID"))), None),
            "creditor_id": self.text(settlement, "CreditorReferenceID"),
            "iban": self.text(first, "PayerPartyDebtorFinancialAccount/IBANID"),
        }
        reference = self.text(settlement, "PaymentReference")
        if first is None and not reference and not any(debit.values()):
            return None
        return put_down(
            {},
            code=_NOT_DEFINED if first is None else self.text(first, "TypeCode"),
            text=self.text(first, "Information"),
            reference=reference,
            transfer=transfer,
            card=put_down({}, pan_last=self.text(card, "ID"), holder=self.text(card, "CardholderName")),
            debit=put_down({}, **debit),
        )

    def _tax(self, tax: Any) -> Form:
        return put_down(
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
        return put_down(
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
        return put_down(
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
        return put_down(
            {},
            id=self.text(document, "LineID"),
            quantity=self.text(line, "SpecifiedLineTradeDelivery/BilledQuantity"),
            unit=None if quantity is None else quantity.get("unitCode"),
            net=self.text(settlement, "SpecifiedTradeSettlementLineMonetarySummation/LineTotalAmount"),
            price=self.text(net, "ChargeAmount"),
            tax=put_down({"category": self.text(tax, "CategoryCode")}, percent=self.text(tax, "RateApplicablePercent")),
            name=self.text(product, "Name"),
            note=self.text(document, "IncludedNote/Content"),
            object=put_down(
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
            gtin=identifier(self.one(product, "GlobalID")),
            classes=[item_class(one) for one in self.all(product, "DesignatedProductClassification/ClassCode")],
            origin=self.text(product, "OriginTradeCountry/ID"),
            attributes=[
                {"name": self.text(one, "Description"), "value": self.text(one, "Value")}
                for one in self.all(product, "ApplicableProductCharacteristic")
            ],
        )
