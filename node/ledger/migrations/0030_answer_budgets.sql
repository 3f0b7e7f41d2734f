-- Stored answers have budgets: of one account, and of all. Their sums are kept by triggers, so that
-- whatever takes an answer away is counted and no write has to add rows up.
ALTER TABLE answers ADD COLUMN account_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE answers ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0;  -- with what a row takes
ALTER TABLE answers ADD COLUMN encoding TEXT NOT NULL DEFAULT '';      -- of the body: '' or 'zlib'
UPDATE answers SET
    account_id = (SELECT account_id FROM holds WHERE id = hold_id),
    size_bytes = length(body) + 256;
CREATE INDEX answers_of_account ON answers (account_id, created_at);

-- Account 0 stands for all.
CREATE TABLE answer_sums (
    account_id INTEGER PRIMARY KEY,
    size_bytes INTEGER NOT NULL
) STRICT;
INSERT INTO answer_sums SELECT account_id, SUM(size_bytes) FROM answers GROUP BY account_id;
INSERT INTO answer_sums SELECT 0, COALESCE(SUM(size_bytes), 0) FROM answers;

CREATE TRIGGER answers_added AFTER INSERT ON answers BEGIN
    INSERT INTO answer_sums VALUES (new.account_id, new.size_bytes), (0, new.size_bytes)
        ON CONFLICT DO UPDATE SET size_bytes = size_bytes + excluded.size_bytes;
END;
CREATE TRIGGER answers_dropped AFTER DELETE ON answers BEGIN
    UPDATE answer_sums SET size_bytes = size_bytes - old.size_bytes
        WHERE account_id IN (0, old.account_id);
    DELETE FROM answer_sums WHERE account_id = old.account_id AND size_bytes <= 0;
END;
