-- What a run found when it was planned and put right before it read the log, such as one id under two customers.

ALTER TABLE bill_runs ADD COLUMN findings jsonb NOT NULL DEFAULT '[]';
