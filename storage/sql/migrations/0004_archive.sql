-- The archive's register: one row per archived file, chained by hash per tenant. Bytes are in the object store.
-- Rows are only ever added: the application's role may neither change nor delete them.

CREATE TABLE archive_entries (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    position bigint NOT NULL CHECK (position > 0),
    document_id text NOT NULL,
    kind text NOT NULL,
    number text NOT NULL,
    document_type text NOT NULL,
    customer text NOT NULL,
    document_date date NOT NULL,
    amount numeric NOT NULL,
    currency text NOT NULL,
    mime text NOT NULL,
    file_name text NOT NULL,
    byte_count bigint NOT NULL,
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    previous bytea NOT NULL CHECK (length(previous) = 32),
    chain bytea NOT NULL CHECK (length(chain) = 32),
    archived_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, position),
    UNIQUE (tenant_id, document_id, kind),
    UNIQUE (tenant_id, chain)
);
CREATE INDEX archive_entries_by_number ON archive_entries (tenant_id, number);
CREATE INDEX archive_entries_by_customer ON archive_entries (tenant_id, customer, position);
CREATE INDEX archive_entries_by_date ON archive_entries (tenant_id, document_date, position);

-- The end of each tenant's chain: locked while entries are added, so that two writers never fork it.
CREATE TABLE archive_heads (
    tenant_id uuid PRIMARY KEY REFERENCES tenants (id),
    position bigint NOT NULL,
    chain bytea NOT NULL CHECK (length(chain) = 32)
);

ALTER TABLE archive_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE archive_entries FORCE ROW LEVEL SECURITY;
ALTER TABLE archive_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE archive_heads FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON archive_entries TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY tenant ON archive_heads TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT ON archive_entries TO cloudbilling_app;
GRANT SELECT, INSERT, UPDATE ON archive_heads TO cloudbilling_app;
