-- Lightning: invoices that fill accounts (mint), payouts of what the node has earned (melt).

-- The mint's quote behind an operation of kind mint or melt.
ALTER TABLE operations ADD COLUMN quote TEXT NOT NULL DEFAULT '';

-- Whose operations payouts are: the operator's. Holds nothing, is never opened.
INSERT INTO accounts (id, kind, state, mint, unit, created_at)
VALUES (0, 'key', 'closed', '', 'sat', 0);

-- hash: SHA-256 of the invoice id, which is a secret that yields an API key.
-- pending → paid; pending, never paid and no longer watched → deleted.
CREATE TABLE invoices (
    hash         TEXT    PRIMARY KEY,
    account_id   INTEGER NOT NULL REFERENCES accounts (id),
    purpose      TEXT    NOT NULL CHECK (purpose IN ('create', 'topup')),
    mint         TEXT    NOT NULL,
    unit         TEXT    NOT NULL,
    amount       INTEGER NOT NULL CHECK (amount > 0),
    quote        TEXT    NOT NULL,
    bolt11       TEXT    NOT NULL,
    peer         TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('pending', 'paid')),
    operation_id TEXT    REFERENCES operations (id),
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    watch_until  INTEGER NOT NULL,
    paid_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX invoices_pending ON invoices (peer) WHERE state = 'pending';
CREATE INDEX invoices_operation ON invoices (operation_id);
CREATE INDEX invoices_quote ON invoices (quote);

-- What a melt pays. An invoice that was paid, or may have been, is never offered again.
CREATE TABLE payouts (
    operation_id TEXT PRIMARY KEY REFERENCES operations (id),
    payment_hash TEXT NOT NULL,
    destination  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX payouts_hash ON payouts (payment_hash);
