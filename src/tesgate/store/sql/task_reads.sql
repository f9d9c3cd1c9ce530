-- name: get_tasks
-- Gathered: whole tasks with their attempts, one row an attempt, of one moment. The document comes as the text that it
-- was stored as. BASIC ($2 false) has no tails; they are large and stay where they are.
SELECT t.id, t.owner, t."group", t.state, t.phase, t.created_at, t.document::text AS document, t.notes AS task_notes,
       t.wait_reason, a.number, a.backend, a.reported_at, a.ended_at, a.snapshot, a.notes, a.outputs,
       CASE WHEN $2 THEN l.tails END AS tails
FROM unnest($1::text[]) AS w(id)
     JOIN task t ON t.id = w.id
     LEFT JOIN attempt a ON a.task_id = w.id
     LEFT JOIN log l ON $2 AND l.task_id = w.id AND l.number = a.number
ORDER BY t.id, a.number;
