-- Who creates an object first, for object stores without a conditional put (storage/claimed_store.py). A row stands only
-- while a creation is under way: once the object is there, its being there decides.

CREATE TABLE object_claims (
    store text NOT NULL,        -- bucket and prefix
    key text NOT NULL,
    draft text NOT NULL,        -- the key under which the bytes lie that were decided
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, key)
);

ALTER TABLE object_claims ENABLE ROW LEVEL SECURITY;
ALTER TABLE object_claims FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON object_claims TO cloudbilling_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON object_claims TO cloudbilling_system;
