-- Forgetting customers: the wish, how far it is, and what proves it. While it goes on `marks` says what tells the customer
-- (his codes, what his forms said, a random key); with its end that is gone, and nobody can try names on what is left.

CREATE TABLE erasures (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    rule text NOT NULL CHECK (length(rule) BETWEEN 1 AND 100),
    state text NOT NULL CHECK (state IN ('asked', 'tables', 'objects', 'usage', 'documents', 'done', 'failed')),
    stands_for text NOT NULL,          -- the code under which what is left goes on
    marks jsonb,                       -- NULL: nothing is left to look for
    asked_at timestamptz NOT NULL,
    asked_by text NOT NULL,
    next_at timestamptz NOT NULL,      -- a step under way moves it on, so a process that dies leaves it to the next
    progress jsonb NOT NULL DEFAULT '{}',
    documents jsonb NOT NULL DEFAULT '[]',  -- archived ones that must be kept: id, number, until
    error text,
    done_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX erasures_one ON erasures (tenant_id, stands_for);
CREATE INDEX erasures_due ON erasures (next_at) WHERE state NOT IN ('done', 'failed');

ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
ALTER TABLE erasures FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON erasures TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
-- The platform looks for erasures that are due, and for nothing else.
CREATE POLICY system ON erasures FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, id, state, next_at) ON erasures TO cloudbilling_system;
GRANT SELECT, INSERT ON erasures TO cloudbilling_app;
GRANT UPDATE (state, marks, next_at, progress, documents, error, done_at) ON erasures TO cloudbilling_app;

-- A change of master data without steps, which says: what is before this was written anew. Who holds older master data
-- in memory reads them again (storage/master_chain.py).
ALTER TABLE master_changes ADD COLUMN erased boolean NOT NULL DEFAULT false;

-- Rows that only ever grow (steps, invoices, audit) are written anew by the owner of the tables, within one tenant; the
-- application's role still cannot. Tables of later versions get the policy with their first erasure.
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
                 WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace AND NOT a.attisdropped LOOP
        EXECUTE format('CREATE POLICY erasing ON %I TO CURRENT_USER '
                       'USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
END $$;
CREATE POLICY erasing ON idempotency_keys TO CURRENT_USER
    USING (owner = current_tenant()) WITH CHECK (owner = current_tenant());
CREATE POLICY erasing ON tenants FOR SELECT TO CURRENT_USER USING (id = current_tenant());
