"""Where each business term of an invoice or credit note stands in UBL 2.1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lxml import etree

from billing.einvoice.ubl import NO_ORDER
from pipelines.invoice_tree import (
    Form,
    InvoiceTree,
    binary,
    gross_price,
    identifier,
    item_class,
    put_down,
    without_tax_number,
)

UBL = "urn:oasis:names:specification:ubl:schema:xsd:{0}-2"


class UblInvoice(InvoiceTree):
    spaces = {  # noqa: RUF012 - never changed
        "cac": UBL.format("CommonAggregateComponents"),
        "cbc": UBL.format("CommonBasicComponents"),
    }

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self._kind = etree.QName(root).localname

    def path(self, path: str) -> str:
        """The last part is a leaf, the others are nodes; a trailing slash says that all are nodes."""
        *nodes, leaf = path.split("/")
        return "/".join([*(f"cac:{part}" for part in nodes), *([f"cbc:{leaf}"] if leaf else [])])

    def invoice(self) -> Form:
        root, kind = self.root, self._kind
        period = self.one(root, "InvoicePeriod/")
        totals = self.one(root, "LegalMonetaryTotal/")
        tax_totals = self.all(root, "TaxTotal/")
        main = next((one for one in tax_totals if self.all(one, "TaxSubtotal/")), tax_totals[0] if tax_totals else None)
        second = next((one for one in tax_totals if one is not main), None)
        means = self.all(root, "PaymentMeans/")
        order, sales_order = self.text(root, "OrderReference/ID"), self.text(root, "OrderReference/SalesOrderID")
        seller, creditor = self._party(self.one(root, "AccountingSupplierParty/Party/"))
        payee, other_creditor = self._payee(self.one(root, "PayeeParty/"))
        form = put_down(
            {},
            number=self.text(root, "ID"),
            issued_on=self.text(root, "IssueDate"),
            type_code=self.text(root, f"{kind}TypeCode"),
            currency=self.text(root, "DocumentCurrencyCode"),
            seller=seller,
            buyer=without_tax_number(self._party(self.one(root, "AccountingCustomerParty/Party/"))[0]),
            totals=put_down(
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
                put_down({"number": self.text(one, "ID")}, issued_on=self.text(one, "IssueDate"))
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
        for one in self.all(self.root, "AdditionalDocumentReference/"):
            kind = self.text(one, "DocumentTypeCode")
            if kind == "130":
                form["invoiced_object"] = identifier(self.one(one, "ID"))
            elif kind == "50":
                put_down(form, project=self.text(one, "ID"))
            else:
                attachments.append(
                    put_down(
                        {"ref": self.text(one, "ID")},
                        text=self.text(one, "DocumentDescription"),
                        uri=self.text(one, "Attachment/ExternalReference/URI"),
                        **binary(self.one(one, "Attachment/EmbeddedDocumentBinaryObject")),
                    )
                )
        return put_down(form, attachments=attachments)

    def _party(self, party: Any) -> tuple[Form | None, str | None]:
        """The party, and the creditor's identifier of a direct debit, which stands among its ids."""
        if party is None:
            return None, None
        found = [one for one in map(identifier, self.all(party, "PartyIdentification/ID")) if one is not None]
        creditor = next((one["id"] for one in found if one.get("scheme") == "SEPA"), None)
        contact = self.one(party, "Contact/")
        numbers: dict[bool, str | None] = {}
        for one in self.all(party, "PartyTaxScheme/"):
            numbers.setdefault(self.text(one, "TaxScheme/ID") == "VAT", self.text(one, "CompanyID"))
        form = put_down(
            {},
            name=self.text(party, "PartyLegalEntity/RegistrationName"),
            address=self._address(self.one(party, "PostalAddress/")),
            trading_name=self.text(party, "PartyName/Name"),
            ids=[one for one in found if one.get("scheme") != "SEPA"],
            legal_id=identifier(self.one(party, "PartyLegalEntity/CompanyID")),
            legal_info=self.text(party, "PartyLegalEntity/CompanyLegalForm"),
            vat_id=numbers.get(True),
            tax_number=numbers.get(False),
            endpoint=identifier(self.one(party, "EndpointID")),
            contact=put_down(
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
        return put_down(
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
        found = [one for one in map(identifier, self.all(payee, "PartyIdentification/ID")) if one is not None]
        own = [one for one in found if one.get("scheme") != "SEPA"]
        creditor = next((one["id"] for one in found if one.get("scheme") == "SEPA"), None)
        legal = identifier(self.one(payee, "PartyLegalEntity/CompanyID"))
        name = self.text(payee, "PartyName/Name")
        return put_down({"name": name}, id=own[0] if own else None, legal_id=legal), creditor

    def _representative(self, one: Any) -> Form | None:
        if one is None:
            return None
        return put_down(
            {},
            name=self.text(one, "PartyName/Name"),
            vat_id=self.text(one, "PartyTaxScheme/CompanyID"),
            address=self._address(self.one(one, "PostalAddress/")),
        )

    def _delivery(self, delivery: Any) -> Form | None:
        if delivery is None:
            return None
        return put_down(
            {},
            name=self.text(delivery, "DeliveryParty/PartyName/Name"),
            location=identifier(self.one(delivery, "DeliveryLocation/ID")),
            delivered_on=self.text(delivery, "ActualDeliveryDate"),
            address=self._address(self.one(delivery, "DeliveryLocation/Address/")),
        )

    def _period(self, period: Any) -> Form | None:
        return put_down({}, start=self.text(period, "StartDate"), end=self.text(period, "EndDate"))

    def _payment(self, means: list[Any], creditor: str | None) -> Form | None:
        if not means:
            return None
        first = means[0]
        code = self.one(first, "PaymentMeansCode")
        transfer = [
            put_down(
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
        return put_down(
            {},
            code=self.text(first, "PaymentMeansCode"),
            text=None if code is None else code.get("name"),
            reference=self.text(first, "PaymentID"),
            transfer=transfer,
            card=put_down(
                {},
                pan_last=self.text(first, "CardAccount/PrimaryAccountNumberID"),
                holder=self.text(first, "CardAccount/HolderName"),
            ),
            debit=put_down({}, **debit),
        )

    def _tax(self, tax: Any) -> Form:
        return put_down(
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
        return put_down(
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
        gross = self.text(price, "AllowanceCharge/BaseAmount") or gross_price(self.text(price, "PriceAmount"), discount)
        return put_down(
            {},
            id=self.text(line, "ID"),
            quantity=self.text(line, f"{kind}Quantity"),
            unit=None if quantity is None else quantity.get("unitCode"),
            net=self.text(line, "LineExtensionAmount"),
            price=self.text(price, "PriceAmount"),
            tax=put_down({"category": self.text(tax, "ID")}, percent=self.text(tax, "Percent")),
            name=self.text(item, "Name"),
            note=self.text(line, "Note"),
            object=identifier(self.one(line, "DocumentReference/ID")),
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
            gtin=identifier(self.one(item, "StandardItemIdentification/ID")),
            classes=[item_class(one) for one in self.all(item, "CommodityClassification/ItemClassificationCode")],
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
