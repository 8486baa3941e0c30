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

-- The newest signed root of each archive: that it is missing in the store is seen by this alone.
ALTER TABLE archive_heads
    ADD COLUMN root_day date,
    ADD COLUMN root_position bigint,
    ADD COLUMN root_hash bytea CHECK (length(root_hash) = 32);
