-- How errors are retried, where the start said otherwise than the handler: JSON, an object.
ALTER TABLE tasks ADD COLUMN retry TEXT;

-- What expires, oldest first. A task has finished_at exactly while it is completed or failed.
CREATE INDEX tasks_finished ON tasks (finished_at, id) WHERE finished_at IS NOT NULL;

-- The history of all tasks of a user; the ids of events are in every index.
CREATE INDEX events_of_user ON events (user);

-- Nobody need have asked for a task to go: its time may have been over.
CREATE TABLE tombstones_now (
    id      TEXT NOT NULL PRIMARY KEY,
    service TEXT NOT NULL,
    user    TEXT NOT NULL,
    gone_at REAL NOT NULL,
    gone_by TEXT,               -- the user who terminated or deleted it; none where it expired
    receipt TEXT                -- JSON, an object
) STRICT, WITHOUT ROWID;
INSERT INTO tombstones_now SELECT id, service, user, gone_at, gone_by, receipt FROM tombstones;
DROP TABLE tombstones;
ALTER TABLE tombstones_now RENAME TO tombstones;
CREATE INDEX tombstones_gone ON tombstones (gone_at);
