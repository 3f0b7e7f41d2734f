-- What was charged by hour (unix seconds of its beginning) and model, so that a year is read from
-- some thousand rows. A trigger keeps it: whatever settles a hold is counted.
CREATE TABLE earnings (
    hour              INTEGER NOT NULL,
    model             TEXT    NOT NULL,
    charged_msat      INTEGER NOT NULL,
    requests          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (hour, model)
) STRICT, WITHOUT ROWID;
INSERT INTO earnings
    SELECT closed_at - closed_at % 3600, model, SUM(cost_msat), COUNT(*), SUM(prompt_tokens),
           SUM(completion_tokens)
    FROM holds WHERE state = 'settled' AND closed_at IS NOT NULL GROUP BY 1, 2;

CREATE TRIGGER holds_settled AFTER UPDATE OF state ON holds
WHEN new.state = 'settled' AND old.state = 'held' BEGIN
    INSERT INTO earnings VALUES (new.closed_at - new.closed_at % 3600, new.model, new.cost_msat, 1,
                                 new.prompt_tokens, new.completion_tokens)
        ON CONFLICT DO UPDATE SET
            charged_msat = charged_msat + excluded.charged_msat,
            requests = requests + 1,
            prompt_tokens = prompt_tokens + excluded.prompt_tokens,
            completion_tokens = completion_tokens + excluded.completion_tokens;
END;
