-- Payouts: when the mint was first seen to say that it is paid, until when the invoice can be
-- paid at all, what it cost so far and how much change may still come (both in the mint's unit),
-- and what of the cost an account has borne (node/ledger/payouts.py).
ALTER TABLE payouts ADD COLUMN paid_at      INTEGER;
ALTER TABLE payouts ADD COLUMN expires_at   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payouts ADD COLUMN spent        INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payouts ADD COLUMN missing      INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payouts ADD COLUMN charged_msat INTEGER NOT NULL DEFAULT 0;
CREATE INDEX payouts_missing ON payouts (paid_at) WHERE missing > 0;

-- Accounts whose refund was tried and is not made: how often, and when it may be tried again.
CREATE TABLE refunds (
    account_id INTEGER PRIMARY KEY REFERENCES accounts (id),
    tries      INTEGER NOT NULL,
    next_at    INTEGER NOT NULL
) STRICT;
