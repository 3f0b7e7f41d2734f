-- Amounts named *_msat are millisatoshi; `amount` and `fee` are in the row's mint unit.
-- Times are unix seconds.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Who is owed money. kind 'key': found by an API key, lives on. kind 'request': opened by the
-- token that pays one request, closed when its change has been issued.
CREATE TABLE accounts (
    id           INTEGER PRIMARY KEY,
    kind         TEXT    NOT NULL CHECK (kind IN ('key', 'request')),
    state        TEXT    NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
    balance_msat INTEGER NOT NULL DEFAULT 0,
    held_msat    INTEGER NOT NULL DEFAULT 0,
    mint         TEXT    NOT NULL,
    unit         TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    CHECK (held_msat >= 0 AND balance_msat >= held_msat)
) STRICT;

-- SHA-256 of what a client shows us: sk-… keys, admin keys, and tokens used as keys.
CREATE TABLE api_keys (
    hash       TEXT    PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    role       TEXT    NOT NULL CHECK (role IN ('spend', 'admin', 'request'))
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_account ON api_keys (account_id);

-- Double entry by construction: a row moves amount_msat from one book to another.
-- Books below 100 are the node's own (node/ledger/books.py), the others are accounts.
CREATE TABLE transfers (
    id          INTEGER PRIMARY KEY,
    source      INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    amount_msat INTEGER NOT NULL CHECK (amount_msat > 0),
    reference   TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    CHECK (source <> destination)
) STRICT;
CREATE INDEX transfers_source ON transfers (source);
CREATE INDEX transfers_destination ON transfers (destination);

-- Money set aside for a request that runs. held → settled | released.
CREATE TABLE holds (
    id                INTEGER PRIMARY KEY,
    account_id        INTEGER NOT NULL REFERENCES accounts (id),
    request_key       TEXT,
    request_digest    TEXT    NOT NULL,
    request_id        TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    price             TEXT    NOT NULL,
    max_cost_msat     INTEGER NOT NULL CHECK (max_cost_msat >= 0),
    state             TEXT    NOT NULL CHECK (state IN ('held', 'settled', 'released')),
    cost_msat         INTEGER NOT NULL DEFAULT 0,
    prompt_tokens     INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    usage_source      TEXT    NOT NULL DEFAULT '',
    created_at        INTEGER NOT NULL,
    closed_at         INTEGER,
    UNIQUE (account_id, request_key)
) STRICT;
CREATE INDEX holds_open ON holds (state) WHERE state = 'held';

CREATE TABLE keysets (
    mint          TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    unit          TEXT    NOT NULL,
    active        INTEGER NOT NULL,
    input_fee_ppk INTEGER NOT NULL,
    keys          TEXT    NOT NULL,
    PRIMARY KEY (mint, id)
) STRICT;

-- Next unused NUT-13 counter.
CREATE TABLE counters (
    keyset_id TEXT    PRIMARY KEY,
    next      INTEGER NOT NULL
) STRICT;

-- Our coins. unspent → reserved (inputs of a swap under way) → spent | unspent;
-- unspent → issued (given out in a token). suspect: was an input of a swap that failed; only
-- good as an input of another one, in case the first lands late.
CREATE TABLE proofs (
    y            TEXT    PRIMARY KEY,
    mint         TEXT    NOT NULL,
    unit         TEXT    NOT NULL,
    keyset_id    TEXT    NOT NULL,
    amount       INTEGER NOT NULL CHECK (amount > 0),
    secret       TEXT    NOT NULL,
    c            TEXT    NOT NULL,
    dleq         TEXT    NOT NULL DEFAULT '',
    state        TEXT    NOT NULL CHECK (state IN ('unspent', 'reserved', 'issued', 'spent')),
    suspect      INTEGER NOT NULL DEFAULT 0,
    operation_id TEXT    NOT NULL,
    created_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX proofs_inventory ON proofs (mint, unit, amount) WHERE state = 'unspent';
CREATE INDEX proofs_operation ON proofs (operation_id);

-- The journal: every exchange with a mint. intent is committed before the mint is asked.
CREATE TABLE operations (
    id          TEXT    PRIMARY KEY,
    kind        TEXT    NOT NULL CHECK (kind IN ('receive', 'send', 'mint', 'melt')),
    state       TEXT    NOT NULL CHECK (state IN ('intent', 'done', 'failed', 'salvaged')),
    account_id  INTEGER NOT NULL REFERENCES accounts (id),
    request_key TEXT,
    mint        TEXT    NOT NULL,
    unit        TEXT    NOT NULL,
    amount      INTEGER NOT NULL CHECK (amount > 0),
    fee         INTEGER NOT NULL,
    surcharge   INTEGER NOT NULL DEFAULT 0,
    inputs      TEXT    NOT NULL,
    outputs     TEXT    NOT NULL,
    token       TEXT,
    error       TEXT,
    attempts    INTEGER NOT NULL DEFAULT 0,
    delivered   INTEGER NOT NULL DEFAULT 0,
    created_at  INTEGER NOT NULL,
    unknown_at  INTEGER NOT NULL,
    UNIQUE (account_id, kind, request_key)
) STRICT;
CREATE INDEX operations_open ON operations (state) WHERE state = 'intent';
CREATE INDEX operations_account ON operations (account_id);

-- Which coins (by NUT-00 Y) an operation spends. A coin is in at most one that has not failed.
CREATE TABLE operation_inputs (
    y            TEXT NOT NULL,
    operation_id TEXT NOT NULL REFERENCES operations (id),
    PRIMARY KEY (y, operation_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX operation_inputs_operation ON operation_inputs (operation_id);

-- Requests over Nostr, so that each runs once.
CREATE TABLE messages (
    sender     TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    status     INTEGER,
    headers    TEXT,
    body       BLOB,
    trailers   TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (sender, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX messages_age ON messages (created_at);
