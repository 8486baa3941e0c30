-- An invoice that a run had cancelled and that was issued again because the run was reversed: the id of the first one,
-- in whose place it counts as billed (of several the newest does).
ALTER TABLE invoices ADD COLUMN stands_for uuid;
CREATE INDEX invoices_standing ON invoices (tenant_id, stands_for, id) WHERE stands_for IS NOT NULL;
