-- A check counts rated events itself and names the places where the log is not what was written (the first of `found`).
-- Null: the log could not be read through, so nobody knows how many there are. Older checks subtracted.
ALTER TABLE completeness_checks ADD COLUMN rated bigint;
ALTER TABLE completeness_checks ADD COLUMN found integer NOT NULL DEFAULT 0;
ALTER TABLE completeness_checks ADD COLUMN differences jsonb NOT NULL DEFAULT '[]';
ALTER TABLE completeness_checks ALTER COLUMN suspended DROP NOT NULL;
ALTER TABLE completeness_checks ALTER COLUMN voided DROP NOT NULL;
UPDATE completeness_checks SET rated = stored - suspended - voided;
