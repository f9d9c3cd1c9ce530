-- name: enter
-- A gateway starts: the next epoch of its id. What the epoch before held is adopted at once.
INSERT INTO replica (id, epoch, host, roles) VALUES ($1, 1, $2, $3)
ON CONFLICT (id) DO UPDATE SET epoch = replica.epoch + 1, host = excluded.host, roles = excluded.roles,
                               seen_at = now(), left_at = NULL
RETURNING epoch;

-- name: beat
-- One heartbeat a replica, whatever the number of tasks. Zero rows: another epoch has taken over.
UPDATE replica SET seen_at = now() WHERE id = $1 AND epoch = $2 AND left_at IS NULL
RETURNING (SELECT count(*) FROM replica r
           WHERE r.id <> $1 AND r.left_at IS NULL AND r.seen_at > now() - interval '1 minute') AS others;

-- name: leave
-- Stopped in order. What it followed is nobody's from here on: whoever adopts it, its own next epoch too, suspects nothing.
WITH gone AS (
    UPDATE replica SET left_at = now() WHERE id = $1 AND epoch = $2
), t AS (
    SELECT id FROM task
    WHERE replica_id = $1 AND replica_epoch = $2 AND (phase IN ('assigned', 'started') OR NOT released)
    ORDER BY id
    FOR NO KEY UPDATE
)
UPDATE task SET replica_id = NULL, replica_epoch = NULL, version = version + 1 FROM t WHERE task.id = t.id;

-- name: adopt
-- protocol: adopt. Taken from whoever is silent, gone, or of an older epoch. Nobody knows yet why they went: whoever
-- adopts from one that crashed follows with suspicion (`suspect`). A task that waits for a further attempt is nobody's
-- to follow.
WITH t AS (
    SELECT t.id, t.replica_id IS NOT NULL AND r.left_at IS NULL AS crashed
    FROM task t LEFT JOIN replica r ON r.id = t.replica_id
    WHERE (t.phase IN ('assigned', 'started') OR t.phase = 'ended' AND NOT t.released)
      AND (t.replica_id IS NULL OR r.id IS NULL OR r.epoch <> t.replica_epoch OR r.left_at IS NOT NULL
           OR r.seen_at < now() - $3::interval)
      AND EXISTS (SELECT FROM replica WHERE id = $1 AND epoch = $2 AND left_at IS NULL)
    ORDER BY t.id LIMIT 2000
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE task SET replica_id = $1, replica_epoch = $2, version = version + 1
FROM t WHERE task.id = t.id
RETURNING task.id, t.crashed;

-- name: hold_singleton
INSERT INTO singleton (name, replica_id, epoch, until) VALUES ($1, $2, $3, now() + $4::interval)
ON CONFLICT (name) DO UPDATE SET replica_id = $2, epoch = $3, until = now() + $4::interval
WHERE singleton.until < now() OR (singleton.replica_id = $2 AND singleton.epoch <= $3)
RETURNING name;

-- name: drop_singletons
DELETE FROM singleton WHERE replica_id = $1 AND epoch = $2;

-- name: forget_replicas
DELETE FROM replica r WHERE r.seen_at < now() - interval '7 days'
  AND NOT EXISTS (SELECT FROM task t WHERE t.replica_id = r.id AND (t.phase IN ('assigned', 'started') OR NOT t.released));
