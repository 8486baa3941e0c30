-- How much one key may ask: requests and events a second, each a bucket that holds what may come at once. NULL: what
-- the platform allows every key.

ALTER TABLE api_keys ADD COLUMN limits jsonb NOT NULL DEFAULT '{}';
GRANT UPDATE (limits) ON api_keys TO cloudbilling_app;
