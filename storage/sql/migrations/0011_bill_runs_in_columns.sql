-- What a finalising transaction writes beside an invoice is made of the same staged rows in the same transaction, and
-- the application may neither change nor delete any of it. So the foreign keys proved nothing that `verify` does not,
-- and cost a look-up for each of nine rows an invoice: more than half of the time that writing them took.
ALTER TABLE invoice_lines DROP CONSTRAINT invoice_lines_tenant_id_invoice_id_fkey;
ALTER TABLE invoice_taxes DROP CONSTRAINT invoice_taxes_tenant_id_invoice_id_fkey;
ALTER TABLE postings DROP CONSTRAINT postings_tenant_id_invoice_id_fkey;
ALTER TABLE document_files DROP CONSTRAINT document_files_tenant_id_invoice_id_fkey;

-- The document whole, packed (zstd over its JSON): JSON of 3 KB each was read, compressed and moved three times on its
-- way in, which took longer than everything else together. Older invoices keep theirs in `document`.
ALTER TABLE invoices ADD COLUMN packed bytea;
ALTER TABLE invoices ALTER COLUMN document DROP NOT NULL;
ALTER TABLE invoices ADD CONSTRAINT invoices_have_a_document CHECK (num_nonnulls(document, packed) = 1);
