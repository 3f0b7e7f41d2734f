-- What an account was opened with, when it was opened with anything (node/core/keys.py).
CREATE TABLE account_terms (
    account_id     INTEGER PRIMARY KEY REFERENCES accounts (id),
    expires_at     INTEGER,
    refund_address TEXT
) STRICT;
CREATE INDEX account_terms_refund ON account_terms (expires_at) WHERE refund_address IS NOT NULL;

-- A child key spends its parent's balance up to a limit. spent_msat counts since period_start,
-- held_msat is the part of the holds that run now. The key itself follows from `name` and the
-- node's secret; `parent` is the beginning of the key that made it. A revoked one stays, for the history.
CREATE TABLE child_keys (
    id           INTEGER PRIMARY KEY,
    account_id   INTEGER NOT NULL REFERENCES accounts (id),
    name         TEXT    NOT NULL UNIQUE,
    hash         TEXT    NOT NULL UNIQUE,
    parent       TEXT    NOT NULL,
    request_key  TEXT,
    limit_msat   INTEGER CHECK (limit_msat >= 0),
    reset        TEXT    CHECK (reset IN ('daily', 'weekly', 'monthly')),
    expires_at   INTEGER,
    period_start INTEGER NOT NULL,
    spent_msat   INTEGER NOT NULL DEFAULT 0 CHECK (spent_msat >= 0),
    held_msat    INTEGER NOT NULL DEFAULT 0 CHECK (held_msat >= 0),
    revoked_at   INTEGER,
    created_at   INTEGER NOT NULL,
    CHECK (limit_msat IS NULL OR spent_msat + held_msat <= limit_msat)
) STRICT;
CREATE INDEX child_keys_account ON child_keys (account_id);

-- The same table with one more role.
CREATE TABLE api_keys_new (
    hash       TEXT    PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    role       TEXT    NOT NULL CHECK (role IN ('spend', 'admin', 'request', 'child'))
) STRICT, WITHOUT ROWID;
INSERT INTO api_keys_new SELECT hash, account_id, role FROM api_keys;
DROP TABLE api_keys;
ALTER TABLE api_keys_new RENAME TO api_keys;
CREATE INDEX api_keys_account ON api_keys (account_id);

-- Which child key a hold is of; NULL: the account's own.
ALTER TABLE holds ADD COLUMN child_id INTEGER REFERENCES child_keys (id);
CREATE INDEX holds_account ON holds (account_id, state, child_id, cost_msat);

-- What is on its way to one account.
CREATE INDEX operations_account_open ON operations (account_id) WHERE state = 'intent';
