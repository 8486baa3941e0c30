-- Whose lines are on the document of somebody who pays for them: so a customer finds the documents that concern him.

CREATE TABLE invoice_members (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    customer text NOT NULL,
    prepaid numeric NOT NULL,  -- part of the document's prepaid amount that came from this customer's wallet
    PRIMARY KEY (tenant_id, customer, invoice_id),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices (tenant_id, id)
);
CREATE INDEX invoice_members_invoice ON invoice_members (tenant_id, invoice_id);

ALTER TABLE invoice_members ENABLE ROW LEVEL SECURITY;
ALTER TABLE invoice_members FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON invoice_members TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT ON invoice_members TO cloudbilling_app;
