-- What a restore needs so that no coin is lost.

-- Counters below `next` at which no mint will ever sign: they are used before new ones, so that
-- failures leave no long gaps between the coins that can be found from the seed.
CREATE TABLE free_counters (
    keyset_id TEXT    NOT NULL,
    first     INTEGER NOT NULL,
    count     INTEGER NOT NULL CHECK (count > 0),
    PRIMARY KEY (keyset_id, first)
) STRICT, WITHOUT ROWID;

-- Counters below `next` at which the mint may have signed, or may still sign, coins that no row
-- tells of: looked at until `until` (unix seconds), and for as long as anything is pending there.
CREATE TABLE watched_counters (
    keyset_id TEXT    NOT NULL,
    first     INTEGER NOT NULL,
    count     INTEGER NOT NULL CHECK (count > 0),
    mint      TEXT    NOT NULL,
    until     INTEGER NOT NULL,
    PRIMARY KEY (keyset_id, first)
) STRICT, WITHOUT ROWID;

-- When an operation was given up, in unix seconds.
ALTER TABLE operations ADD COLUMN failed_at INTEGER;
UPDATE operations SET failed_at = unknown_at WHERE state = 'failed';
CREATE INDEX operations_failed ON operations (failed_at) WHERE state = 'failed' AND attempts > 0;
