-- How a tenant wants to be billed: guard rails, a second pair of eyes, until when usage may come, when runs begin.
CREATE TABLE billing_settings (
    tenant_id uuid PRIMARY KEY REFERENCES tenants (id),
    form jsonb NOT NULL,
    version int NOT NULL DEFAULT 1,
    changed_by text NOT NULL,
    changed_at timestamptz NOT NULL
);
ALTER TABLE billing_settings ENABLE ROW LEVEL SECURITY;
ALTER TABLE billing_settings FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON billing_settings TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
-- The platform looks for tenants whose runs begin by themselves.
CREATE POLICY system ON billing_settings FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT ON billing_settings TO cloudbilling_system;
GRANT SELECT, INSERT, UPDATE ON billing_settings TO cloudbilling_app;

-- What was found when a run was computed: `checks` compares it with the run before; `held` are customers whom a guard
-- rail keeps back, `released` those of them whom somebody let through. `request_key`: who asks twice gets one run.
ALTER TABLE bill_runs
    ADD COLUMN checks jsonb,
    ADD COLUMN held jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN released jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN approved_by text,
    ADD COLUMN request_key text,
    ADD COLUMN reversed_by text,
    DROP CONSTRAINT bill_runs_state_check,
    ADD CONSTRAINT bill_runs_state_check CHECK (state IN ('planned', 'computed', 'approved', 'finalised', 'done',
        'cancelled', 'failed', 'reversing', 'reversed'));
CREATE UNIQUE INDEX bill_runs_request ON bill_runs (tenant_id, request_key) WHERE request_key IS NOT NULL;
DROP INDEX bill_runs_one;
CREATE UNIQUE INDEX bill_runs_one ON bill_runs (tenant_id)
    WHERE state NOT IN ('done', 'cancelled', 'failed', 'reversed');

-- The run whose document this one takes back: neither counts as billed any more.
ALTER TABLE invoices ADD COLUMN reverses_run uuid;
CREATE UNIQUE INDEX invoices_reversing ON invoices (tenant_id, reverses_run, refers_to) WHERE reverses_run IS NOT NULL;
