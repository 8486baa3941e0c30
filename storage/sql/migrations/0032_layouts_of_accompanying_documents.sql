-- Documents that are made again and again (statements, reminders): each edition has a layout of its own. What an edition
-- says is known by its hash, so making the same again, also after a crash, is drawn as before. Invoices have one row.

ALTER TABLE document_layouts
    ADD COLUMN place int NOT NULL DEFAULT 1,         -- counted up; the newest row says what is drawn next
    ADD COLUMN edition int NOT NULL DEFAULT 1,       -- the version that its files get in the archive
    ADD COLUMN content text NOT NULL DEFAULT '',     -- hash of what is drawn; '': of no edition that is there
    DROP CONSTRAINT document_layouts_pkey,
    ADD PRIMARY KEY (tenant_id, document_id, place);
