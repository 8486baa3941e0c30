-- Layouts of documents: what a tenant's documents look like. A draft may change; a published version never does. Which
-- version a document is drawn with is noted before it is drawn, so that making its files again gives the same bytes.

CREATE TABLE layouts (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    code text NOT NULL CHECK (code ~ '^[a-z0-9][a-z0-9-]{0,63}$'),
    document_type text NOT NULL,
    name text NOT NULL DEFAULT '',
    draft jsonb NOT NULL,              -- as a version's form
    revision int NOT NULL DEFAULT 1,   -- of the draft, counted up with each change
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    PRIMARY KEY (tenant_id, code)
);

CREATE TABLE layout_versions (
    tenant_id uuid NOT NULL,
    code text NOT NULL,
    version int NOT NULL CHECK (version > 0),
    form jsonb NOT NULL,               -- engine, source, blocks: layout_of() reads it
    note text NOT NULL DEFAULT '',
    published_at timestamptz NOT NULL,
    published_by text NOT NULL,
    PRIMARY KEY (tenant_id, code, version),
    FOREIGN KEY (tenant_id, code) REFERENCES layouts (tenant_id, code)
);

-- Which layout a type of document gets; without a row the built-in one. The newest row counts, the others are history.
CREATE TABLE layout_choices (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id bigint GENERATED ALWAYS AS IDENTITY,
    document_type text NOT NULL,
    code text,                         -- null: the built-in layout again
    version int,
    chosen_at timestamptz NOT NULL,
    chosen_by text NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, code, version) REFERENCES layout_versions (tenant_id, code, version),
    CHECK ((code IS NULL) = (version IS NULL))
);
CREATE INDEX layout_choices_newest ON layout_choices (tenant_id, document_type, id DESC);

CREATE TABLE document_layouts (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    document_id uuid NOT NULL,
    code text,                         -- null: the built-in layout
    version int NOT NULL,
    PRIMARY KEY (tenant_id, document_id)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['layouts', 'layout_versions', 'layout_choices', 'document_layouts']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO cloudbilling_app '
                       'USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
END $$;
GRANT SELECT, INSERT ON layouts, layout_versions, layout_choices, document_layouts TO cloudbilling_app;
GRANT UPDATE (document_type, name, draft, revision, changed_at, changed_by) ON layouts TO cloudbilling_app;
