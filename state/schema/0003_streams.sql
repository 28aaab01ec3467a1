-- Whether a task's work is the body of requests.
ALTER TABLE tasks ADD COLUMN stream INTEGER NOT NULL DEFAULT 0;
