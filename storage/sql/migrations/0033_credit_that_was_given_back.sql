-- A statement of credit asks of each credit note whether its invoice's credit went back; moves stay as a record, so there
-- are as many of them as invoices that used credit.

CREATE INDEX wallet_moves_restored ON wallet_moves (tenant_id, subject) WHERE kind = 'restore';
