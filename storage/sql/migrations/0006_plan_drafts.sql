-- Plans before they are published: they may change and vanish, nothing is billed by them. Published versions are steps.
CREATE TABLE plan_drafts (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    code text NOT NULL CHECK (code <> '' AND length(code) <= 256),
    form jsonb NOT NULL,
    version int NOT NULL DEFAULT 1,
    actor text NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, code)
);
ALTER TABLE plan_drafts ENABLE ROW LEVEL SECURITY;
ALTER TABLE plan_drafts FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON plan_drafts TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON plan_drafts TO cloudbilling_app;
