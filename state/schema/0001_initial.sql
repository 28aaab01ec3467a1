-- Times are Unix seconds. Columns that hold JSON hold text that a person can read. Ids of tasks are UUIDs of version 7, so
-- their order is the order of making. The wide columns stand last: what does not ask for them does not read them.

CREATE TABLE tasks (
    id            TEXT    NOT NULL PRIMARY KEY,
    service       TEXT    NOT NULL,
    user          TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    reason        TEXT,
    priority      INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,  -- the newest attempt's number; the fence on every write
    errors_left   INTEGER NOT NULL,
    losses        INTEGER NOT NULL,  -- in a row, without a newer checkpoint in between
    lost_sequence INTEGER NOT NULL,  -- of the checkpoint at the last loss
    created_at    REAL    NOT NULL,
    started_at    REAL,
    finished_at   REAL,
    due_at        REAL,
    labels        TEXT    NOT NULL,  -- JSON, an object
    error         TEXT,              -- JSON, an object
    params        TEXT    NOT NULL,  -- JSON
    result        TEXT               -- JSON
) STRICT;

-- For lists, newest first; the primary key does for a list of everything.
CREATE INDEX tasks_of_user ON tasks (user, id);
CREATE INDEX tasks_of_service ON tasks (service, id);
CREATE INDEX tasks_of_user_and_service ON tasks (user, service, id);

-- The rest hold only tasks that are not at rest, so that they stay small whatever is stored.
CREATE INDEX tasks_moving ON tasks (status, id)
    WHERE status IN ('pending', 'running', 'pausing', 'retrying', 'terminating');
CREATE INDEX tasks_moving_of_user ON tasks (user, id)
    WHERE status IN ('pending', 'running', 'pausing', 'retrying', 'terminating');
-- Who is next. A service with a long queue and no free place is not looked through to find another one's task.
CREATE INDEX tasks_ready ON tasks (service, priority DESC, id)
    WHERE status = 'pending' AND due_at IS NULL AND losses < 3;
CREATE INDEX tasks_wary ON tasks (service, priority DESC, id)
    WHERE status = 'pending' AND due_at IS NULL AND losses >= 3;
-- What becomes due.
CREATE INDEX tasks_delayed ON tasks (due_at) WHERE status = 'pending' AND due_at IS NOT NULL;
CREATE INDEX tasks_retrying ON tasks (due_at) WHERE status = 'retrying';

CREATE TABLE checkpoints (
    task_id  TEXT    NOT NULL PRIMARY KEY,
    sequence INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,  -- the one that saved it
    version  INTEGER NOT NULL,  -- of the handler
    saved_at REAL    NOT NULL,
    outputs  TEXT    NOT NULL,  -- JSON: the length in bytes of each file
    progress TEXT,              -- JSON, an object
    state    TEXT    NOT NULL   -- JSON
) STRICT;

CREATE TABLE attempts (
    task_id           TEXT    NOT NULL,
    attempt           INTEGER NOT NULL,
    kind              TEXT    NOT NULL,
    started_at        REAL    NOT NULL,
    ended_at          REAL,
    outcome           TEXT,
    exit_code         INTEGER,
    signal            TEXT,
    cpu_s             REAL,
    peak_memory_bytes INTEGER,
    error             TEXT,     -- JSON, an object
    PRIMARY KEY (task_id, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id       INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    task_id  TEXT    NOT NULL,
    user     TEXT    NOT NULL,
    at       REAL    NOT NULL,
    event    TEXT,              -- none for the creation
    status   TEXT    NOT NULL,
    reason   TEXT,
    attempt  INTEGER NOT NULL,
    asked_by TEXT               -- the user; none for the supervisor
) STRICT;
CREATE INDEX events_of_task ON events (task_id);

-- What is left of a task that is gone.
CREATE TABLE tombstones (
    id      TEXT NOT NULL PRIMARY KEY,
    service TEXT NOT NULL,
    user    TEXT NOT NULL,
    gone_at REAL NOT NULL,
    gone_by TEXT NOT NULL,      -- the user who terminated or deleted it
    receipt TEXT                -- JSON, an object
) STRICT, WITHOUT ROWID;
