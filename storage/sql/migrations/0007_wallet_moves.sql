-- What became of wallet credit that documents use: written in the transaction that makes the documents final (or gives
-- their run up), then brought to the home lanes of the customers by a reconciler, in this order. The lane may be told
-- twice, so a move is done when it says so. Done rows stay as the record of what was told.

CREATE TABLE wallet_moves (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id bigint GENERATED ALWAYS AS IDENTITY,
    made_at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('settle', 'free', 'free_run', 'restore')),
    customer text NOT NULL,            -- '' for a run that is given up whole
    subject text NOT NULL,             -- the run, or the number of the credit note
    body jsonb NOT NULL DEFAULT '{}',  -- settle: documents {key: number}; restore: invoice
    done_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX wallet_moves_open ON wallet_moves (tenant_id, id) WHERE done_at IS NULL;

ALTER TABLE wallet_moves ENABLE ROW LEVEL SECURITY;
ALTER TABLE wallet_moves FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON wallet_moves TO cloudbilling_app
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
-- The platform looks for tenants with moves that nobody has brought yet (and for nothing else).
CREATE POLICY system ON wallet_moves FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, done_at) ON wallet_moves TO cloudbilling_system;
GRANT SELECT, INSERT ON wallet_moves TO cloudbilling_app;
GRANT UPDATE (done_at) ON wallet_moves TO cloudbilling_app;
