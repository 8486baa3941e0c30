-- Finding archived files among millions. Under row-level security PostgreSQL uses an index only for conditions that it
-- knows to leak nothing: words, amounts and beginnings of numbers are not among them, so every search read all entries of
-- the tenant. This function looks with its owner's eyes, and itself names the tenant in each condition.

DROP INDEX archive_entries_by_amount;
CREATE INDEX archive_entries_by_amount ON archive_entries (tenant_id, amount);
DROP INDEX archive_entries_by_number;
CREATE INDEX archive_entries_by_number ON archive_entries (tenant_id, number COLLATE "C");  -- finds beginnings

CREATE POLICY find ON archive_entries FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY find ON archive_texts FOR SELECT TO CURRENT_USER USING (true);

-- A mark of the tenant among the words: a word that all tenants use is found in one of them without reading the others.
CREATE FUNCTION archive_mark(p_tenant uuid) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'tenant' || left(replace(p_tenant::text, '-', ''), 12)
$$;
ALTER TABLE archive_texts NO FORCE ROW LEVEL SECURITY;
UPDATE archive_texts SET words = words || array_to_tsvector(ARRAY[archive_mark(tenant_id)]);
ALTER TABLE archive_texts FORCE ROW LEVEL SECURITY;

-- `asked` has what is asked for, by name; what is missing or null does not count. `seen` are the sights of the reader: each
-- limits customers, types of documents, both or (null) neither; one of them must show the entry.
CREATE FUNCTION archive_find(asked jsonb, seen jsonb, p_after bigint, p_limit integer) RETURNS SETOF archive_entries
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    query text := 'SELECT entry.* FROM archive_entries AS entry'
                  ' WHERE entry.tenant_id = $1 AND entry.position > $2 AND entry.deleted_by IS NULL';
BEGIN
    -- Only fixed texts are joined; every value is a parameter.
    IF asked ->> 'customer' IS NOT NULL THEN
        query := query || ' AND entry.customer = $4 ->> ''customer''';
    END IF;
    IF asked ->> 'number' IS NOT NULL THEN
        query := query || ' AND starts_with(entry.number COLLATE "C", $4 ->> ''number'')';
    END IF;
    IF asked ->> 'kind' IS NOT NULL THEN
        query := query || ' AND entry.kind = $4 ->> ''kind''';
    END IF;
    IF asked ->> 'document_type' IS NOT NULL THEN
        query := query || ' AND entry.document_type = $4 ->> ''document_type''';
    END IF;
    IF asked ->> 'since' IS NOT NULL THEN
        query := query || ' AND entry.document_date >= ($4 ->> ''since'')::date';
    END IF;
    IF asked ->> 'until' IS NOT NULL THEN
        query := query || ' AND entry.document_date <= ($4 ->> ''until'')::date';
    END IF;
    IF asked ->> 'amount_min' IS NOT NULL THEN
        query := query || ' AND entry.amount >= ($4 ->> ''amount_min'')::numeric';
    END IF;
    IF asked ->> 'amount_max' IS NOT NULL THEN
        query := query || ' AND entry.amount <= ($4 ->> ''amount_max'')::numeric';
    END IF;
    IF asked ->> 'words' IS NOT NULL THEN
        -- First the words, by their index, then their entries one by one in order until enough are found: whatever the
        -- planner knows or does not know of the tables (OFFSET 0 keeps it from turning this around).
        query := replace(query, 'FROM archive_entries AS entry',
            'FROM (SELECT position FROM (SELECT tenant_id, position FROM archive_texts WHERE words @@'
            ' (archive_mark($1)::tsquery && websearch_to_tsquery(''simple'', $4 ->> ''words'')) OFFSET 0) AS found'
            ' WHERE tenant_id = $1 ORDER BY position OFFSET 0) AS said CROSS JOIN LATERAL (SELECT * FROM archive_entries'
            ' WHERE tenant_id = $1 AND position = said.position OFFSET 0) AS entry');
    END IF;
    IF seen IS NOT NULL THEN
        query := query || ' AND EXISTS (SELECT FROM jsonb_array_elements($5) AS sight'
                          ' WHERE (sight ->> ''customers'' IS NULL OR sight -> ''customers'' ? entry.customer)'
                          '   AND (sight ->> ''types'' IS NULL OR sight -> ''types'' ? entry.document_type))';
    END IF;
    RETURN QUERY EXECUTE query || ' ORDER BY entry.position LIMIT $3' USING current_tenant(), p_after, p_limit, asked, seen;
END $$;
REVOKE ALL ON FUNCTION archive_find(jsonb, jsonb, bigint, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION archive_find(jsonb, jsonb, bigint, integer) TO cloudbilling_app;
