-- Bill runs, what they made, and the numbers that documents got. An invoice is immutable: the application may insert
-- and read, never change (the state of its files is a table of its own).

CREATE TABLE bill_runs (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    number int NOT NULL,               -- 1, 2, 3 ... of the tenant, for people
    up_to timestamptz NOT NULL,        -- selects periods
    document_date date NOT NULL,
    made_at timestamptz NOT NULL,      -- the clock of the run: "now" for credit, treatments and future events
    cut jsonb NOT NULL,                -- positions in the usage log: select events
    previous_cut jsonb,                -- of the run before: what lies behind it is new
    master_number bigint NOT NULL,
    master_steps bigint NOT NULL,
    mark bigint,                       -- the step by which its approval says: this is billed
    data_versions jsonb NOT NULL,      -- time zone data and product that the result rests on
    state text NOT NULL CHECK (state IN ('planned', 'computed', 'approved', 'finalised', 'done', 'cancelled', 'failed')),
    auto_approve boolean NOT NULL,     -- go on by itself, or wait for somebody who looks
    paused boolean NOT NULL DEFAULT false,
    cancel_asked boolean NOT NULL DEFAULT false,
    customers int NOT NULL,
    chunks int NOT NULL,
    parked jsonb NOT NULL DEFAULT '[]',
    error text,
    created_by text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, number)
);
-- One run per tenant at a time.
CREATE UNIQUE INDEX bill_runs_one ON bill_runs (tenant_id) WHERE state NOT IN ('done', 'cancelled', 'failed');

CREATE TABLE bill_run_chunks (
    tenant_id uuid NOT NULL,
    run_id uuid NOT NULL,
    chunk int NOT NULL,
    state text NOT NULL CHECK (state IN ('planned', 'computed', 'finalised', 'documented')),
    customers int NOT NULL,
    result text,                       -- key of the Parquet file in the object store
    documents int,
    lines int,
    totals jsonb,                      -- per currency: documents, net, tax, gross
    parked jsonb NOT NULL DEFAULT '[]',
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id, chunk),
    FOREIGN KEY (tenant_id, run_id) REFERENCES bill_runs (tenant_id, id)
);

CREATE TABLE number_series (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    entity text NOT NULL,
    series text NOT NULL,              -- invoice, credit_note
    year int NOT NULL,
    last bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, entity, series, year)
);

CREATE TABLE invoices (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id uuid NOT NULL,
    number text NOT NULL,
    entity text NOT NULL,
    series text NOT NULL,
    year int NOT NULL,
    n bigint NOT NULL,                 -- the number's counter: 1, 2, 3 ... without a gap
    type text NOT NULL CHECK (type IN ('invoice', 'credit_note')),
    customer text NOT NULL,
    customer_name text NOT NULL,
    currency text NOT NULL,
    issued_on date NOT NULL,
    due_on date,
    period_start timestamptz,
    period_end timestamptz,
    net numeric NOT NULL,
    tax numeric NOT NULL,
    gross numeric NOT NULL,
    prepaid numeric NOT NULL,
    due numeric NOT NULL,
    run_id uuid,                       -- NULL: a credit note made by hand
    run_mark bigint NOT NULL DEFAULT 0,
    made_at timestamptz NOT NULL,
    refers_to text,
    reason text,
    document jsonb NOT NULL,           -- the whole document as billing made it
    buyer jsonb NOT NULL,              -- the customer's form as it was printed
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, number),
    UNIQUE (tenant_id, entity, series, year, n),
    CHECK (gross = net + tax),
    CHECK (due = gross - prepaid)
);
CREATE INDEX invoices_customer ON invoices (tenant_id, customer, id);
CREATE INDEX invoices_run ON invoices (tenant_id, run_id, id);
CREATE INDEX invoices_date ON invoices (tenant_id, issued_on, id);

CREATE TABLE invoice_lines (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    line int NOT NULL,
    subscription text NOT NULL,
    charge text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    quantity numeric NOT NULL,
    unit text NOT NULL,
    allowance numeric NOT NULL,
    amount numeric NOT NULL,
    tax_category text NOT NULL,
    tax_percent numeric NOT NULL,
    plan text NOT NULL,
    plan_version int NOT NULL,
    correction boolean NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, line),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices (tenant_id, id)
);

CREATE TABLE invoice_taxes (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    category text NOT NULL,
    percent numeric NOT NULL,
    base numeric NOT NULL,
    amount numeric NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, category, percent),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices (tenant_id, id)
);

-- One posting moves one amount from one account to another, so every set of postings balances by construction.
CREATE TABLE postings (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    posting int NOT NULL,
    booked_on date NOT NULL,
    debit text NOT NULL CHECK (debit IN ('receivables', 'revenue', 'tax', 'prepaid')),
    credit text NOT NULL CHECK (credit IN ('receivables', 'revenue', 'tax', 'prepaid')),
    amount numeric NOT NULL CHECK (amount > 0),
    currency text NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, posting),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices (tenant_id, id),
    CHECK (debit <> credit)
);

-- What became of a document's files: a reconciler brings it from wanted to archived, or parks it with the reason.
CREATE TABLE document_files (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    state text NOT NULL CHECK (state IN ('wanted', 'archived', 'parked')),
    sha256 text,
    e_invoice boolean NOT NULL DEFAULT false,
    reason text,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoices (tenant_id, id)
);
CREATE INDEX document_files_state ON document_files (tenant_id, state, invoice_id);

CREATE TABLE outbox (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    body jsonb NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['bill_runs', 'bill_run_chunks', 'number_series', 'invoices', 'invoice_lines',
                                'invoice_taxes', 'postings', 'document_files', 'outbox'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO cloudbilling_app '
                       'USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())', name);
    END LOOP;
END $$;
-- The platform looks for runs that nobody drives any more (and for nothing else).
CREATE POLICY system ON bill_runs FOR SELECT TO cloudbilling_system USING (true);
GRANT SELECT (tenant_id, id, state, paused) ON bill_runs TO cloudbilling_system;

GRANT SELECT, INSERT, UPDATE ON bill_runs, bill_run_chunks, number_series, document_files TO cloudbilling_app;
GRANT SELECT, INSERT ON invoices, invoice_lines, invoice_taxes, postings, outbox TO cloudbilling_app;
