-- name: get_tasks
-- Gathered: whole tasks with their attempts, one row an attempt, of one moment. The document comes as the text that it
-- was stored as. (OFFSET 0: see get_states.) BASIC ($2 false) has no tails; they are large and stay where they are.
SELECT t.id, t.owner, t."group", t.state, t.phase, t.created_at, t.document::text AS document, t.notes AS task_notes,
       t.wait_reason, a.number, a.backend, a.reported_at, a.ended_at, a.snapshot, a.notes, a.outputs,
       CASE WHEN $2 THEN l.tails END AS tails
FROM unnest($1::text[]) AS w(id)
     CROSS JOIN LATERAL (SELECT * FROM task WHERE id = w.id OFFSET 0) t
     LEFT JOIN LATERAL (SELECT * FROM attempt WHERE task_id = w.id OFFSET 0) a ON true
     LEFT JOIN LATERAL (SELECT tails FROM log WHERE $2 AND task_id = w.id AND number = a.number OFFSET 0) l ON true
ORDER BY t.id, a.number;
