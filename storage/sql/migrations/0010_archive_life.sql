-- The life of an archived file: versions, where its bytes lie, how long it is kept, holds, deletion with proof, who read
-- it, who may read what, and the words it is found by.

ALTER TABLE archive_entries NO FORCE ROW LEVEL SECURITY;
ALTER TABLE archive_entries
    ADD COLUMN link_format smallint NOT NULL DEFAULT 1,  -- what the chain hash covers: storage/archive/entries.py
    ADD COLUMN version integer NOT NULL DEFAULT 1 CHECK (version > 0),
    ADD COLUMN retained_until date,  -- kept to the end of this day at least
    ADD COLUMN deleted_by bigint;    -- position of the record that says who deleted it, when and under which rule
-- Files from before: invoices and credit notes, eight years from the end of their year.
UPDATE archive_entries SET retained_until = make_date(extract(year FROM document_date)::int + 8, 12, 31);
ALTER TABLE archive_entries
    ALTER COLUMN retained_until SET NOT NULL,
    DROP CONSTRAINT archive_entries_tenant_id_document_id_kind_key,
    ADD CONSTRAINT archive_entries_identity UNIQUE (tenant_id, document_id, kind, version);
ALTER TABLE archive_entries FORCE ROW LEVEL SECURITY;
CREATE INDEX archive_entries_by_amount ON archive_entries (tenant_id, currency, amount);

-- Where bytes lie: alone under their hash, or in a pack of many. The same bytes are kept once.
CREATE TABLE archive_places (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    object_key text NOT NULL,
    start bigint NOT NULL CHECK (start >= 0),
    length bigint NOT NULL CHECK (length >= 0),
    PRIMARY KEY (tenant_id, sha256)
);
CREATE INDEX archive_places_by_object ON archive_places (tenant_id, object_key, start);

-- Objects that are to go: what was deleted, and what a put that was cut off left behind (after a day).
CREATE TABLE archive_dropped (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    object_key text NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, object_key)
);

CREATE TABLE archive_texts (
    tenant_id uuid NOT NULL,
    position bigint NOT NULL,
    words tsvector NOT NULL,
    PRIMARY KEY (tenant_id, position),
    FOREIGN KEY (tenant_id, position) REFERENCES archive_entries (tenant_id, position) ON DELETE CASCADE
);
CREATE INDEX archive_texts_words ON archive_texts USING gin (words);

CREATE TABLE archive_retention (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    document_type text NOT NULL,
    years integer NOT NULL CHECK (years BETWEEN 0 AND 100),
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    PRIMARY KEY (tenant_id, document_type)
);

CREATE TABLE archive_holds (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    customer text,     -- of this customer only
    document_id text,  -- of this document only
    reason text NOT NULL,
    placed_at timestamptz NOT NULL,
    placed_by text NOT NULL,
    released_at timestamptz,
    released_by text,
    release_reason text,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE archive_access (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    document_id text,
    detail text NOT NULL DEFAULT '',
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX archive_access_by_document ON archive_access (tenant_id, document_id, id);

-- Who is limited to some customers or types of documents; who is not named sees what the scope allows.
CREATE TABLE archive_rights (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    subject text NOT NULL,  -- "role viewer", "user ann@example.org", "key cb_abcdef"
    customers text[],
    document_types text[],
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    PRIMARY KEY (tenant_id, subject)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['archive_places', 'archive_dropped', 'archive_texts', 'archive_retention',
                                'archive_holds', 'archive_access', 'archive_rights'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO cloudbilling_app'
                       ' USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE, DELETE ON archive_places TO cloudbilling_app;
GRANT SELECT, INSERT, DELETE ON archive_dropped, archive_texts TO cloudbilling_app;
GRANT SELECT, INSERT, UPDATE ON archive_retention TO cloudbilling_app;
GRANT SELECT, INSERT ON archive_holds, archive_access TO cloudbilling_app;
GRANT UPDATE (released_at, released_by, release_reason) ON archive_holds TO cloudbilling_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON archive_rights TO cloudbilling_app;

-- The only way in which an entry of the register ever changes. The database itself looks at time, hold and record, so
-- that a mistake in the program cannot delete what must be kept. The function's owner acts under a policy of its own.
CREATE POLICY forget ON archive_entries TO CURRENT_USER
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
CREATE POLICY forget ON archive_holds FOR SELECT TO CURRENT_USER USING (tenant_id = current_tenant());
CREATE FUNCTION archive_forget(p_position bigint, p_record bigint, p_today date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE archive_entries AS entry
       SET deleted_by = p_record, document_id = 'deleted ' || entry.position, number = '', customer = '',
           file_name = '', amount = 0
     WHERE entry.tenant_id = current_tenant() AND entry.position = p_position AND entry.deleted_by IS NULL
       AND entry.retained_until < p_today AND entry.kind <> 'deletion' AND p_record > entry.position
       AND EXISTS (SELECT 1 FROM archive_entries AS record
                    WHERE record.tenant_id = current_tenant() AND record.position = p_record
                      AND record.kind = 'deletion')
       AND NOT EXISTS (SELECT 1 FROM archive_holds AS held
                        WHERE held.tenant_id = current_tenant() AND held.released_at IS NULL
                          AND (held.customer IS NULL OR held.customer = entry.customer)
                          AND (held.document_id IS NULL OR held.document_id = entry.document_id));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'entry % must be kept', p_position USING ERRCODE = 'integrity_constraint_violation';
    END IF;
END $$;
REVOKE ALL ON FUNCTION archive_forget(bigint, bigint, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION archive_forget(bigint, bigint, date) TO cloudbilling_app;
