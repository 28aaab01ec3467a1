-- A task that is to start later keeps its time through a pause. Only an upload has one there that it expires at.
DROP INDEX tasks_abandoned;
CREATE INDEX tasks_abandoned ON tasks (due_at, id) WHERE status = 'paused' AND stream AND due_at IS NOT NULL;
