-- What a task counts with in its user's stored bytes: what it has, or was announced. None: it is not counted at all.
ALTER TABLE tasks ADD COLUMN bytes INTEGER;
UPDATE tasks SET bytes = coalesce(
    json_extract(params, '$.size_bytes'),
    (SELECT json_extract(state, '$.received') FROM checkpoints WHERE task_id = tasks.id),
    0
) WHERE service = 'upload';

-- The sums for each user, so that nobody has to look through what is stored: written along with each change of a task.
CREATE TABLE usage (
    user       TEXT    NOT NULL PRIMARY KEY,
    bytes      INTEGER NOT NULL,
    uploads    INTEGER NOT NULL,
    unfinished INTEGER NOT NULL  -- of these, those that are not completed
) STRICT, WITHOUT ROWID;
INSERT INTO usage SELECT user, sum(bytes), count(*), sum(status <> 'completed') FROM tasks
    WHERE bytes IS NOT NULL GROUP BY user;
