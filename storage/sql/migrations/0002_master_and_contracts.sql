-- Master data: the steps that make a tenant's catalog and contracts (append only, with who and when), the changes in
-- which they came, and what they add up to as records to search. The steps are the truth; the records follow them in
-- the same transaction.

CREATE TABLE masters (
    tenant_id uuid PRIMARY KEY REFERENCES tenants (id),
    number bigint NOT NULL DEFAULT 0, -- newest change; locked while a change is made, so numbers have no gap
    steps bigint NOT NULL DEFAULT 0   -- newest step
);

CREATE TABLE master_changes (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    number bigint NOT NULL CHECK (number >= 0),
    first_step bigint NOT NULL,
    last_step bigint NOT NULL,
    actor text NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, number)
);

CREATE TABLE steps (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    step bigint NOT NULL CHECK (step > 0),
    number bigint NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    form jsonb NOT NULL,
    before jsonb,
    PRIMARY KEY (tenant_id, step),
    FOREIGN KEY (tenant_id, number) REFERENCES master_changes (tenant_id, number) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX steps_subject ON steps (tenant_id, kind, subject, step);

-- One row per thing that has a code: its newest form, and a version that every change raises (ETag).
CREATE TABLE master_records (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    kind text NOT NULL CHECK (kind IN ('tax_code', 'meter', 'plan', 'customer', 'subscription', 'budget')),
    code text NOT NULL,
    name text NOT NULL,
    parent text,          -- subscription, budget: its customer
    plan text,            -- subscription: its plan
    country text,         -- customer
    form jsonb NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    step bigint NOT NULL, -- the newest step that changed it
    search text NOT NULL, -- lower case, what people look for
    PRIMARY KEY (tenant_id, kind, code)
);
CREATE INDEX master_records_parent ON master_records (tenant_id, kind, parent, code);
CREATE INDEX master_records_plan ON master_records (tenant_id, kind, plan, code);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['masters', 'master_changes', 'steps', 'master_records'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO cloudbilling_app '
                       'USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
END $$;

GRANT SELECT, INSERT ON steps, master_changes TO cloudbilling_app;
GRANT SELECT, INSERT, UPDATE ON masters, master_records TO cloudbilling_app;
