-- Answers to paid requests that had an idempotency key, for when it is asked again. A row belongs to
-- the hold that paid; key and digest say for which request, since the hold of a token has its own key.
CREATE TABLE answers (
    hold_id      INTEGER PRIMARY KEY REFERENCES holds (id),
    request_key  TEXT    NOT NULL,
    digest       TEXT    NOT NULL,
    status       INTEGER NOT NULL,
    content_type TEXT    NOT NULL,
    body         BLOB    NOT NULL,
    cost_msat    INTEGER NOT NULL,
    created_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX answers_created ON answers (created_at);
