-- What is paused and expires: uploads whose client does not come back. Those that there are already have a week from now.
CREATE INDEX tasks_abandoned ON tasks (due_at, id) WHERE status = 'paused' AND due_at IS NOT NULL;
UPDATE tasks SET due_at = strftime('%s', 'now') + 604800.0 WHERE status = 'paused' AND stream;
