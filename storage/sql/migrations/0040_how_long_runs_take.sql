-- What a run was expected to come to when it was planned, and how long each of its stages took: the next estimate.
ALTER TABLE bill_runs
    ADD COLUMN estimate jsonb,                             -- pipelines/run_estimate.py; NULL: planned before there was one
    ADD COLUMN stage_seconds jsonb NOT NULL DEFAULT '{}';  -- stage -> {seconds, from: how much was done when it began}
