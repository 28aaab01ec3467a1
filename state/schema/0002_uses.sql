-- Which uploads an unfinished task reads: they are kept for as long.
CREATE TABLE uses (
    upload_id TEXT NOT NULL,
    task_id   TEXT NOT NULL,
    PRIMARY KEY (upload_id, task_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX uses_of_task ON uses (task_id);
