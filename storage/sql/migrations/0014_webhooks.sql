-- Who is told of alerts, what was told, and who has seen an alert. A message is made from the log under an id that
-- follows from what it tells, so making it again does nothing; each endpoint has a delivery of its own.

CREATE TABLE webhook_endpoints (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    url text NOT NULL,
    description text NOT NULL DEFAULT '',
    event_types text[] NOT NULL,
    secret text NOT NULL,              -- signs what is sent; shown once, when it is made
    old_secret text,                   -- signs as well until then
    old_secret_until timestamptz,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    disabled_at timestamptz,
    disabled_because text,
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE webhook_messages (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id text NOT NULL,
    event_type text NOT NULL,
    made_at timestamptz NOT NULL,
    body bytea NOT NULL,               -- the very bytes that are signed
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE webhook_deliveries (
    tenant_id uuid NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    message_id text NOT NULL,
    endpoint_id uuid NOT NULL,
    state text NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    tries int NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL,      -- a claim moves it on, so a process that dies leaves it to the next
    last_at timestamptz,
    last_status int,
    last_error text,
    done_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, message_id, endpoint_id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES webhook_messages (tenant_id, id),
    FOREIGN KEY (tenant_id, endpoint_id) REFERENCES webhook_endpoints (tenant_id, id)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_at) WHERE state = 'waiting';
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (tenant_id, id) WHERE state = 'dead';

CREATE TABLE alert_acknowledgements (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    alert_id text NOT NULL,
    at timestamptz NOT NULL,
    by text NOT NULL,
    note text NOT NULL DEFAULT '',
    PRIMARY KEY (tenant_id, alert_id)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['webhook_endpoints', 'webhook_messages', 'webhook_deliveries', 'alert_acknowledgements']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO cloudbilling_app '
                       'USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
END $$;
-- The platform looks for tenants with endpoints, and for those with deliveries that are due, and for nothing else.
CREATE POLICY system ON webhook_endpoints FOR SELECT TO cloudbilling_system USING (true);
CREATE POLICY system ON webhook_deliveries FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, deleted_at, disabled_at) ON webhook_endpoints TO cloudbilling_system;
GRANT SELECT (tenant_id, state, next_at) ON webhook_deliveries TO cloudbilling_system;
GRANT SELECT, INSERT ON webhook_endpoints, webhook_messages, webhook_deliveries, alert_acknowledgements
    TO cloudbilling_app;
GRANT UPDATE (url, description, event_types, secret, old_secret, old_secret_until, disabled_at, disabled_because,
              deleted_at) ON webhook_endpoints TO cloudbilling_app;
GRANT UPDATE (state, tries, next_at, last_at, last_status, last_error, done_at) ON webhook_deliveries
    TO cloudbilling_app;
