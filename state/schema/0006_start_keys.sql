-- What clients call their starts, so that one that is sent again finds the first.
CREATE TABLE start_keys (
    user    TEXT NOT NULL,
    name    TEXT NOT NULL,
    digest  TEXT NOT NULL,  -- of what was asked for
    task_id TEXT NOT NULL,
    at      REAL NOT NULL,
    PRIMARY KEY (user, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX start_keys_at ON start_keys (at);
