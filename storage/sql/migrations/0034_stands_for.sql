-- An invoice that a run had cancelled and that was issued again because the run was reversed: the id of the first one,
-- in whose place it counts as billed (of several the newest does).
ALTER TABLE invoices ADD COLUMN stands_for uuid;
CREATE INDEX invoices_standing ON invoices (tenant_id, stands_for, id) WHERE stands_for IS NOT NULL;

-- Documents that count as billed: not those of a run that was reversed, nor those that took them back; in the place of
-- the first one, with its run and what it referred to, one that stands for it. `place` is the id of the first one; of
-- documents with the same place only the newest counts (of those that whoever asks wants to know of).
-- security_invoker: rows are those of the asking tenant, as in the tables behind it.
CREATE VIEW standing_documents WITH (security_invoker = true) AS
SELECT i.tenant_id, i.id, coalesce(i.stands_for, i.id) AS place, i.number, i.type, i.customer, i.period_start,
       i.period_end, i.document, i.packed, i.stands_for,
       CASE WHEN i.stands_for IS NULL THEN i.refers_to ELSE o.refers_to END AS refers_to,
       coalesce(o.run_id, i.run_id) AS run_id, coalesce(o.run_mark, i.run_mark) AS run_mark,
       coalesce(o.made_at, i.made_at) AS made_at
FROM invoices i LEFT JOIN invoices o ON o.tenant_id = i.tenant_id AND o.id = i.stands_for
WHERE (i.reverses_run IS NULL OR i.stands_for IS NOT NULL)
  AND NOT EXISTS (SELECT 1 FROM bill_runs r WHERE r.tenant_id = i.tenant_id AND r.id = coalesce(o.run_id, i.run_id)
                  AND r.state IN ('reversing', 'reversed'));
GRANT SELECT ON standing_documents TO cloudbilling_app;
