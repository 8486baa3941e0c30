-- The end of a tenant: closed (it may be read and exported, nothing changes any more), then erased at a day that is said
-- before and can be taken back until it begins.

ALTER TABLE tenants
    ADD COLUMN closed_at timestamptz,
    ADD COLUMN closed_by text,
    ADD COLUMN erase_at timestamptz CHECK (erase_at IS NULL OR closed_at IS NOT NULL),
    ADD COLUMN erase_rule text,
    ADD COLUMN erasing_since timestamptz,   -- from here on nothing is taken back
    ADD COLUMN erase_next_at timestamptz,   -- a step under way moves it on, so a process that dies leaves it to the next
    ADD COLUMN erase_progress jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN erased_at timestamptz;
GRANT UPDATE (closed_at, closed_by, erase_at, erase_rule, erasing_since, erase_next_at, erase_progress, erased_at)
    ON tenants TO cloudbilling_system;

-- The rows of a tenant that is erased are deleted by the owner of the tables (policies of 0029). People who belong to no
-- other tenant go with it.
CREATE POLICY erasing_all ON tenants FOR UPDATE TO CURRENT_USER USING (id = current_tenant()) WITH CHECK (id = current_tenant());
GRANT DELETE ON users TO cloudbilling_system;

-- How long a tenant keeps what no law makes it keep, by class; without a row for ever. A reconciler looks once a day.
CREATE TABLE retention_rules (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    class text NOT NULL CHECK (class IN ('usage', 'notifications', 'record')),
    months int NOT NULL CHECK (months BETWEEN 1 AND 1200),
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    next_at timestamptz NOT NULL,
    last_at timestamptz,
    last_result jsonb NOT NULL DEFAULT '{}',
    failing_since timestamptz,
    error text,
    PRIMARY KEY (tenant_id, class)
);
ALTER TABLE retention_rules ENABLE ROW LEVEL SECURITY;
ALTER TABLE retention_rules FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON retention_rules TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY system ON retention_rules FOR SELECT TO cloudbilling_system USING (true);
CREATE POLICY erasing ON retention_rules TO CURRENT_USER
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT (tenant_id, class, next_at) ON retention_rules TO cloudbilling_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON retention_rules TO cloudbilling_app;
