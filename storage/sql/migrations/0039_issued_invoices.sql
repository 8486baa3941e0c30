-- Invoices that were made elsewhere and got their number here: documents like all others, with the JSON that they came as,
-- of which their files are made. No bill run knows of them: what they say was never usage.
CREATE TABLE issued_invoices (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    form jsonb NOT NULL,               -- in the terms of EN 16931, without the number
    PRIMARY KEY (tenant_id, invoice_id),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices (tenant_id, id)
);
ALTER TABLE issued_invoices ENABLE ROW LEVEL SECURITY;
ALTER TABLE issued_invoices FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON issued_invoices TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY erasing ON issued_invoices TO CURRENT_USER
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT ON issued_invoices TO cloudbilling_app;

-- As before, without them: what bills a customer's contracts must not compare with lines that no contract made.
CREATE OR REPLACE VIEW standing_documents WITH (security_invoker = true) AS
SELECT i.tenant_id, i.id, coalesce(i.stands_for, i.id) AS place, i.number, i.type, i.customer, i.period_start,
       i.period_end, i.document, i.packed, i.stands_for,
       CASE WHEN i.stands_for IS NULL THEN i.refers_to ELSE o.refers_to END AS refers_to,
       coalesce(o.run_id, i.run_id) AS run_id, coalesce(o.run_mark, i.run_mark) AS run_mark,
       coalesce(o.made_at, i.made_at) AS made_at
FROM invoices i LEFT JOIN invoices o ON o.tenant_id = i.tenant_id AND o.id = i.stands_for
WHERE (i.reverses_run IS NULL OR i.stands_for IS NOT NULL)
  AND NOT EXISTS (SELECT 1 FROM bill_runs r WHERE r.tenant_id = i.tenant_id AND r.id = coalesce(o.run_id, i.run_id)
                  AND r.state IN ('reversing', 'reversed'))
  AND NOT EXISTS (SELECT 1 FROM issued_invoices x WHERE x.tenant_id = i.tenant_id AND x.invoice_id = i.id);
