-- What a re-read of a tenant's whole log found, against what was counted when it was stored. Append only.

CREATE TABLE completeness_checks (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    at timestamptz NOT NULL,
    stored bigint NOT NULL,
    suspended bigint NOT NULL,
    voided bigint NOT NULL,
    counted bigint NOT NULL,
    complete boolean NOT NULL,
    PRIMARY KEY (tenant_id, at)
);

ALTER TABLE completeness_checks ENABLE ROW LEVEL SECURITY;
ALTER TABLE completeness_checks FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON completeness_checks TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
-- The platform looks which tenants have not been checked for a day.
CREATE POLICY system ON completeness_checks FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, at, complete) ON completeness_checks TO cloudbilling_system;
GRANT SELECT, INSERT ON completeness_checks TO cloudbilling_app;
