-- Tenants, who may act for them, and what they did. Roles and current_tenant() are made before (storage/sql/migrate.py).
-- cloudbilling_app works inside one tenant; cloudbilling_system sees only what is needed before the tenant is known.

CREATE TABLE tenants (
    id uuid PRIMARY KEY,
    code text NOT NULL UNIQUE CHECK (code <> '' AND length(code) <= 256),
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('live', 'test')),
    currency text NOT NULL,
    timezone text NOT NULL,
    country text,
    generated boolean NOT NULL DEFAULT false,
    form jsonb NOT NULL,
    -- The clock of a test tenant; a live tenant has none and cannot be given one.
    test_clock timestamptz CHECK (test_clock IS NULL OR kind = 'test'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE legal_entities (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    code text NOT NULL CHECK (code <> '' AND length(code) <= 256),
    name text NOT NULL,
    country text,
    form jsonb NOT NULL,
    version int NOT NULL DEFAULT 1,
    is_default boolean NOT NULL DEFAULT false,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, code)
);
CREATE UNIQUE INDEX legal_entities_default ON legal_entities (tenant_id) WHERE is_default;

-- A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slow hash would protect.
-- tenant_id NULL: a platform key (makes tenants, works inside none).
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    tenant_id uuid REFERENCES tenants (id),
    name text NOT NULL,
    start text NOT NULL, -- the first characters, to tell keys apart
    hash bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_tenant ON api_keys (tenant_id, created_at, id);

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL UNIQUE CHECK (email = lower(email)),
    name text NOT NULL,
    password_hash text NOT NULL, -- argon2id
    failures int NOT NULL DEFAULT 0,
    paused_until timestamptz,
    disabled_at timestamptz,
    created_at timestamptz NOT NULL
);

CREATE TABLE memberships (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    user_id uuid NOT NULL REFERENCES users (id),
    role text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
);
CREATE INDEX memberships_user ON memberships (user_id);

CREATE TABLE sessions (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    user_id uuid NOT NULL REFERENCES users (id),
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- Written in the transaction of the change it answers for: a key is there if and only if its change is.
-- owner = the tenant, or the platform key.
CREATE TABLE idempotency_keys (
    owner uuid NOT NULL,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
    status int,
    body bytea,
    headers jsonb,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Append only. Changes of catalog and contracts are kept with their steps; here is everything else that people do.
CREATE TABLE audit_entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    before jsonb,
    after jsonb
);
CREATE INDEX audit_entries_tenant ON audit_entries (tenant_id, id);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenants', 'legal_entities', 'api_keys', 'users', 'memberships', 'sessions',
                                'idempotency_keys', 'audit_entries'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['legal_entities', 'api_keys', 'memberships', 'sessions', 'audit_entries'] LOOP
        EXECUTE format('CREATE POLICY tenant ON %I TO cloudbilling_app '
                       'USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['tenants', 'api_keys', 'users', 'memberships', 'sessions', 'idempotency_keys'] LOOP
        EXECUTE format('CREATE POLICY system ON %I TO cloudbilling_system USING (true) WITH CHECK (true)', name);
    END LOOP;
END $$;

CREATE POLICY tenant ON tenants TO cloudbilling_app USING (id = current_tenant()) WITH CHECK (id = current_tenant());
CREATE POLICY tenant ON idempotency_keys TO cloudbilling_app
    USING (owner = current_tenant()) WITH CHECK (owner = current_tenant());
CREATE POLICY tenant ON users FOR SELECT TO cloudbilling_app
    USING (EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = users.id AND m.tenant_id = current_tenant()));

GRANT SELECT ON tenants TO cloudbilling_app;
GRANT UPDATE (name, form, test_clock) ON tenants TO cloudbilling_app;
GRANT SELECT, INSERT, UPDATE ON legal_entities TO cloudbilling_app;
GRANT SELECT, INSERT ON api_keys TO cloudbilling_app;
GRANT UPDATE (name, revoked_at) ON api_keys TO cloudbilling_app;
GRANT SELECT (id, email, name, disabled_at, created_at) ON users TO cloudbilling_app;
GRANT SELECT, INSERT, DELETE ON memberships TO cloudbilling_app;
GRANT UPDATE (role) ON memberships TO cloudbilling_app;
GRANT SELECT, DELETE ON sessions TO cloudbilling_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO cloudbilling_app;
GRANT SELECT, INSERT ON audit_entries TO cloudbilling_app;

GRANT SELECT, INSERT ON tenants, api_keys TO cloudbilling_system;
GRANT UPDATE (revoked_at) ON api_keys TO cloudbilling_system;
GRANT SELECT, INSERT, UPDATE ON users TO cloudbilling_system;
GRANT SELECT, INSERT ON memberships TO cloudbilling_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON sessions, idempotency_keys TO cloudbilling_system;
