-- Events out: which rows of the outbox still have to be told to endpoints, and deliveries that are taken by endpoint.

-- NULL: an endpoint listens to this type and the event is not in its queue yet. What nobody listens to is written with
-- its own time, so it costs no second write. What was written before this existed is not told any more.
ALTER TABLE outbox ADD COLUMN told_at timestamptz DEFAULT now();
ALTER TABLE outbox ALTER COLUMN told_at DROP DEFAULT;
CREATE INDEX outbox_waiting ON outbox (tenant_id, id) WHERE told_at IS NULL;
CREATE INDEX outbox_missed ON outbox (tenant_id, subject) WHERE kind = 'bill_run.missed';
CREATE POLICY system ON outbox FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, told_at) ON outbox TO cloudbilling_system;
GRANT UPDATE (told_at), DELETE ON outbox TO cloudbilling_app;

-- Each endpoint's oldest deliveries, however many wait for another one.
CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (tenant_id, endpoint_id, next_at, id)
    WHERE state = 'waiting';
