-- name: access
-- May this attempt be told about storage now? One row while it is open and its runner's own, else none. The document
-- comes only where it is not known yet: it never changes.
SELECT t.owner, t."group", t.state = 'CANCELING' AS stop,
       CASE WHEN t.publisher = $2 AND t.state <> 'CANCELING'
            THEN greatest(0, extract(epoch FROM t.publish_until - now()))::float8 ELSE 0 END AS lease,
       CASE WHEN $4 THEN t.document END AS document
FROM task t, attempt a
WHERE t.id = $1 AND t.attempt = $2 AND t.phase <> 'ended'
  AND a.task_id = $1 AND a.number = $2 AND a.instance = $3 AND NOT a.closed;

-- name: insert_upload
-- Only for an attempt that is still open: what is begun too late is nobody's, and its caller aborts it. The intention $10
-- goes with it where the store can have made no other upload.
WITH new AS (
    INSERT INTO upload (id, endpoint, bucket, key, task_id, number, size_bytes, part_bytes, algorithm)
    SELECT $3, $4, $5, $6, $1, $2, $7, $8, $9
    WHERE EXISTS (SELECT FROM attempt WHERE task_id = $1 AND number = $2 AND NOT closed)
    ON CONFLICT (task_id, number, id) DO UPDATE SET endpoint = excluded.endpoint
    RETURNING id
), settled AS (
    DELETE FROM upload_intention i USING new WHERE i.id = $10::bigint
)
SELECT id FROM new;

-- name: intend_upload
-- Before the store is asked to begin one. Only for an attempt that is still open.
INSERT INTO upload_intention (task_id, number, endpoint, bucket, key)
SELECT $1, $2, $3, $4, $5
WHERE EXISTS (SELECT FROM attempt WHERE task_id = $1 AND number = $2 AND NOT closed)
RETURNING id;

-- name: forget_intentions
DELETE FROM upload_intention WHERE id = ANY($1::bigint[]);

-- name: old_intentions
-- Of uploads about which nothing was heard for so long; a few at a time, from behind $2 on.
SELECT id, endpoint, bucket, key, extract(epoch FROM now() - created_at)::float8 AS age
FROM upload_intention WHERE created_at <= now() - $1::interval AND id > $2 ORDER BY id LIMIT $3;

-- name: known_uploads
-- Which of these uploads have a row.
SELECT id FROM upload WHERE endpoint = $1 AND bucket = $2 AND key = $3 AND id = ANY($4::text[]);

-- name: older_uploads
-- What earlier attempts of the task have begun at these keys and not completed.
SELECT u.* FROM upload u WHERE u.key = ANY($3::text[]) AND u.task_id = $1 AND u.number < $2 AND u.completed_at IS NULL;

-- name: get_uploads
SELECT u.* FROM unnest($3::text[]) AS w(id)
     CROSS JOIN LATERAL (SELECT * FROM upload WHERE task_id = $1 AND number = $2 AND id = w.id OFFSET 0) u;

-- name: completing
-- Before the store is asked: whoever asks again then knows that it may have happened.
UPDATE upload SET completing_at = coalesce(completing_at, now()) WHERE task_id = $1 AND number = $2 AND id = $3;

-- name: completed
UPDATE upload SET completed_at = coalesce(completed_at, now()) WHERE task_id = $1 AND number = $2 AND id = $3;

-- name: delete_upload
DELETE FROM upload WHERE task_id = $1 AND number = $2 AND id = $3;

-- name: stale_uploads
-- Those of attempts that are over, or whose task has no row any more; a few at a time, from behind $1 on. (A scalar
-- subquery: one attempt after the other by the primary key, whatever the planner thinks of partitions.)
SELECT u.* FROM upload u
WHERE (u.task_id, u.number, u.id) > ($1::text, $2::integer, $3::text)
  AND NOT coalesce((SELECT NOT a.closed FROM attempt a WHERE a.task_id = u.task_id AND a.number = u.number), false)
ORDER BY u.task_id, u.number, u.id LIMIT $4;
