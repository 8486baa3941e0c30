-- What each document added to what its customer owes, by the ledger: statements of accounts and reminders read it.
-- security_invoker: rows are those of the asking tenant, as in the tables behind it.
CREATE VIEW receivable_documents WITH (security_invoker = true) AS
SELECT i.tenant_id, i.id, i.number, i.type, i.customer, i.currency, i.issued_on, i.due_on, i.refers_to,
       coalesce((SELECT sum(CASE WHEN p.debit = 'receivables' THEN p.amount
                                 WHEN p.credit = 'receivables' THEN -p.amount ELSE 0 END)
                 FROM postings p WHERE p.tenant_id = i.tenant_id AND p.invoice_id = i.id), 0) AS owed
FROM invoices i;
GRANT SELECT ON receivable_documents TO cloudbilling_app;
CREATE INDEX invoices_refers_to ON invoices (tenant_id, refers_to) WHERE refers_to IS NOT NULL;
