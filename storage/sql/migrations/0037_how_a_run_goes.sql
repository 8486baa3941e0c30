-- How a bill run goes: why it waits, since when its present stage is worked on, the number patterns it was planned
-- with. No run was ever `failed`: what went wrong stands in `error` of a run that is where it was.
ALTER TABLE bill_runs
    ADD COLUMN waiting_reason text,               -- a store or database that is away: the driver tries again by itself
    ADD COLUMN stage_since timestamptz,           -- when a driver began, or took up again, the work of this stage
    ADD COLUMN stage_from int NOT NULL DEFAULT 0, -- how much of it was done then
    ADD COLUMN patterns jsonb,                    -- legal entity -> type of document -> pattern, fixed by the plan
    DROP CONSTRAINT bill_runs_state_check,
    ADD CONSTRAINT bill_runs_state_check CHECK (state IN ('planned', 'computed', 'approved', 'finalised', 'done',
        'cancelled', 'reversing', 'reversed'));
DROP INDEX bill_runs_one;
CREATE UNIQUE INDEX bill_runs_one ON bill_runs (tenant_id) WHERE state NOT IN ('done', 'cancelled', 'reversed');

-- Every pattern that gave a number: a new one must never give the same text again.
CREATE TABLE number_patterns (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    entity text NOT NULL,
    series text NOT NULL,
    pattern text NOT NULL,
    PRIMARY KEY (tenant_id, entity, series, pattern)
);
ALTER TABLE number_patterns ENABLE ROW LEVEL SECURITY;
ALTER TABLE number_patterns FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON number_patterns TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY erasing ON number_patterns TO CURRENT_USER
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT ON number_patterns TO cloudbilling_app;
-- Of numbers from before, the patterns that their legal entities have now (billing/numbers.py, `patterns_of`).
ALTER TABLE number_series NO FORCE ROW LEVEL SECURITY;
ALTER TABLE legal_entities NO FORCE ROW LEVEL SECURITY;
ALTER TABLE number_patterns NO FORCE ROW LEVEL SECURITY;
INSERT INTO number_patterns (tenant_id, entity, series, pattern)
SELECT DISTINCT e.tenant_id, e.code, s.series, replace(replace(
           coalesce(nullif(e.form -> 'series' ->> s.series, ''),
                    CASE WHEN e.is_default THEN '{series}-{yyyy}-{n:06}' ELSE '{series}-{entity}-{yyyy}-{n:06}' END),
           '{series}', CASE s.series WHEN 'invoice' THEN 'RE' ELSE 'RK' END), '{entity}', translate(e.code, '{}', ''))
  FROM number_series s JOIN legal_entities e ON e.tenant_id = s.tenant_id AND e.code = s.entity;
ALTER TABLE number_series FORCE ROW LEVEL SECURITY;
ALTER TABLE legal_entities FORCE ROW LEVEL SECURITY;
ALTER TABLE number_patterns FORCE ROW LEVEL SECURITY;

-- The newest signed root of each archive: that it is missing in the store is seen by this alone.
ALTER TABLE archive_heads
    ADD COLUMN root_day date,
    ADD COLUMN root_position bigint,
    ADD COLUMN root_hash bytea CHECK (length(root_hash) = 32);
