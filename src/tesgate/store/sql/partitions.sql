-- name: read_partitions
-- Of task alone: attempt, log and task_event are always cut and dropped together with it.
SELECT substr(c.relname, 6) AS suffix, pg_get_expr(c.relpartbound, c.oid) AS bounds,
       (extract(epoch FROM now()) * 1000)::bigint AS now_ms
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'task'::regclass;

-- name: take_turn
-- One process at a time cuts or drops.
SELECT pg_try_advisory_xact_lock(x'7465736761746502'::bigint);

-- name: lock_timeout
-- Shorter than deadlock_timeout, so that it is never a statement of a task that gives up. Writers wait so long at most.
SET LOCAL lock_timeout = '500ms';

-- name: lock_tables
LOCK TABLE ONLY task, ONLY attempt, ONLY log, ONLY task_event IN ACCESS EXCLUSIVE MODE;

-- name: detach
ALTER TABLE {table} DETACH PARTITION {table}_{suffix};

-- name: attach
ALTER TABLE {table} ATTACH PARTITION {table}_{suffix} FOR VALUES FROM ({lower}) TO ({upper});

-- name: create
CREATE TABLE {table}_{suffix} PARTITION OF {table} FOR VALUES FROM ({lower}) TO ({upper});

-- name: move_rows
-- What came in before its partition was cut: after a long rest of all gateways, or with a clock that ran ahead.
WITH gone AS (DELETE FROM {table}_later WHERE {key} < {upper} RETURNING *)
INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM gone;

-- name: can_go
SELECT NOT EXISTS (SELECT FROM task_{suffix} WHERE phase <> 'ended')
   AND NOT EXISTS (SELECT FROM task_{suffix} WHERE NOT released)
   AND NOT EXISTS (SELECT FROM task_{suffix} WHERE phase = 'ended' AND ended_at >= now() - $1::interval);

-- name: forget_keys
DELETE FROM idempotency WHERE (owner, key) IN
    (SELECT owner, key FROM idempotency WHERE task_id >= $1 AND task_id < $2 ORDER BY task_id LIMIT 5000);

-- name: drop
DROP TABLE task_{suffix}, attempt_{suffix}, log_{suffix}, task_event_{suffix};
