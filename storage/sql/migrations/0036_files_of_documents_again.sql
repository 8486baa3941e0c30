-- A document whose files could not be made is taken up again with the customer's data of then, as its own may have been
-- what was wrong with it. They stand here: an invoice is changed by nobody. `customer` says whose they are, for erasures.
ALTER TABLE document_files
    ADD COLUMN customer text,
    ADD COLUMN buyer jsonb,
    ADD CHECK ((customer IS NULL) = (buyer IS NULL));

-- The platform looks which tenants have documents that wait for their files.
CREATE POLICY system ON document_files FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, state, changed_at) ON document_files TO cloudbilling_system;
