-- name: insert_tasks
-- protocol: submit. Gathered. A row whose idempotency key is there already is left out of the answer, and so is one
-- whose id is there: the statement may be sent again.
WITH n AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                         $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::bigint[], $14::text[])
        AS n(id, owner, grp, name, document, tags, notes, cpu, ram, disk, key, hash, gpus, pools)
), k AS (
    INSERT INTO idempotency (owner, key, task_id, body_hash)
    SELECT owner, key, id, hash FROM n WHERE key IS NOT NULL ORDER BY owner, key
    ON CONFLICT DO NOTHING
    RETURNING task_id
)
INSERT INTO task (id, owner, "group", name, state, phase, document, tags, notes,
                  need_cpu_milli, need_ram_bytes, need_disk_bytes, need_gpus, pools)
SELECT n.id, n.owner, n.grp, n.name, 'QUEUED', 'waiting', n.document::json, n.tags::jsonb, n.notes::jsonb,
       n.cpu, n.ram, n.disk, n.gpus, string_to_array(n.pools, ',')
FROM n WHERE n.key IS NULL OR n.id IN (SELECT task_id FROM k)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: find_idempotent
(SELECT id, NULL AS body_hash FROM task WHERE id = $1)
UNION ALL
(SELECT task_id, body_hash FROM idempotency WHERE owner = $2 AND key = $3)
LIMIT 1;

-- name: get_states
-- Gathered: the owner comes along, so that one statement serves many callers. By a join, for = ANY($1) prunes no partitions.
-- (OFFSET 0: one row after the other by the primary key, whatever the planner thinks of all partitions together.)
SELECT t.id, t.owner, t."group", t.state
FROM unnest($1::text[]) AS w(id)
     CROSS JOIN LATERAL (SELECT id, owner, "group", state FROM task WHERE id = w.id OFFSET 0) t;

-- name: cancel_task
-- protocol: cancel. What nobody has begun and no lease protects ends at once; the rest is CANCELING until it is stopped.
WITH t AS (
    SELECT id, phase, state, attempt, replica_id,
           phase = 'waiting' AND (publish_until IS NULL OR publish_until <= now()) AS at_once
    FROM task
    WHERE id = $1 AND ($2 OR owner = $3 OR "group" = ANY($4::text[]))
    FOR NO KEY UPDATE
), u AS (
    UPDATE task SET
        state = CASE WHEN t.at_once THEN 'CANCELED' ELSE 'CANCELING' END,
        phase = CASE WHEN t.at_once THEN 'ended' ELSE task.phase END,
        ended_at = CASE WHEN t.at_once THEN now() END,
        attempt = CASE WHEN t.at_once THEN greatest(t.attempt, 1) ELSE task.attempt END,
        pending_state = NULL,
        cancel_requested_at = now(),
        version = task.version + 1
    FROM t WHERE task.id = $1 AND t.phase <> 'ended' AND t.state <> 'CANCELING'
    RETURNING task.id, task.state, task.attempt
), never_begun AS (
    -- clients read logs[0] of every ended task
    INSERT INTO attempt (task_id, number, backend, external_name, closed, ended_at)
    SELECT t.id, 1, '', '', true, now() FROM t WHERE t.at_once AND t.attempt = 0 AND t.phase <> 'ended'
), event AS (
    INSERT INTO task_event (task_id, number, kind) SELECT u.id, u.attempt, 'cancel' FROM u
)
SELECT coalesce(u.state, t.state) AS state, u.id IS NOT NULL AS changed, t.replica_id,
       (SELECT agent_id FROM attempt WHERE task_id = $1 AND number = t.attempt AND NOT closed) AS agent_id
FROM t LEFT JOIN u ON true;

-- name: waiting_tasks
-- The queue's head: in each owner's share the oldest first, owners in turn, beginning behind $2, who was served last. So one
-- place that becomes free does not go to the longest queue each time. A loose scan over task_waiting: the cost depends on
-- $1 alone, not on the length of the queue nor on the number of owners. The documents of $3 are known, and the open agents
-- come along on the first row: one round trip tells all that a round of the dispatcher goes by. Of the owners $4 only what
-- stands behind the ids $5: what stands before was seen and can only wait.
WITH RECURSIVE later AS (
    (SELECT owner FROM task WHERE phase = 'waiting' AND owner > $2 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT t.owner FROM task t WHERE t.phase = 'waiting' AND t.owner > o.owner ORDER BY t.owner LIMIT 1)
    FROM later o WHERE o.owner IS NOT NULL
), earlier AS (
    (SELECT owner FROM task WHERE phase = 'waiting' AND owner <= $2 ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT t.owner FROM task t WHERE t.phase = 'waiting' AND t.owner > o.owner AND t.owner <= $2
            ORDER BY t.owner LIMIT 1)
    FROM earlier o WHERE o.owner IS NOT NULL
), owners AS MATERIALIZED (
    SELECT owner, row_number() OVER () AS place,
           coalesce((SELECT b.id FROM unnest($4::text[], $5::text[]) AS b(owner, id) WHERE b.owner = o.owner), '') AS behind
    FROM (SELECT owner FROM later UNION ALL SELECT owner FROM earlier) o
    WHERE owner IS NOT NULL LIMIT $1
), depth AS (
    SELECT least($1, 1 + 4 * $1 / greatest(1, count(*))) AS depth FROM owners
), heads AS (
    SELECT o.place, h.*, row_number() OVER (PARTITION BY o.place ORDER BY h.id) AS turn,
           count(*) OVER (PARTITION BY o.place) AS seen
    FROM owners o CROSS JOIN LATERAL (
        SELECT t.id, t.owner, t.version, t.attempt, t.need_cpu_milli, t.need_ram_bytes, t.need_disk_bytes,
               t.need_gpus, t.pools, t.document, t.wait_reason, extract(epoch FROM now() - t.created_at)::float8 AS age
        FROM task t
        WHERE t.phase = 'waiting' AND t.owner = o.owner AND t.id > o.behind
          AND t.state <> 'CANCELING' AND t.pending_state IS NULL
          AND (t.not_before IS NULL OR t.not_before <= now())
        ORDER BY t.id LIMIT (SELECT depth FROM depth)
    ) h
), head AS (
    SELECT *, row_number() OVER (ORDER BY turn, place) AS rank FROM heads ORDER BY turn, place LIMIT $1
)
SELECT id, owner, version, attempt, need_cpu_milli, need_ram_bytes, need_disk_bytes, need_gpus, pools, wait_reason, age,
       CASE WHEN id <> ALL($3::text[]) THEN document END AS document,
       -- behind it the owner may have more
       turn = (SELECT depth FROM depth) OR rank = $1 AS more,
       turn = seen AND seen < (SELECT depth FROM depth) AS last,
       CASE WHEN rank = 1 THEN (SELECT json_agg(g ORDER BY g.id) FROM agent g WHERE g.state = 'open') END AS agents
FROM head ORDER BY rank;

-- name: note_reasons
-- Why a task waits, for its system_logs. No version: the reason decides nothing.
-- What another statement holds just now keeps the old one until the next round.
WITH t AS (
    SELECT t.id, r.reason
    FROM unnest($1::text[], $2::text[]) AS r(id, reason) JOIN task t ON t.id = r.id
    WHERE t.phase = 'waiting' AND t.wait_reason IS DISTINCT FROM r.reason
    ORDER BY t.id
    FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE task SET wait_reason = t.reason FROM t WHERE task.id = t.id;

-- name: end_pending
-- Ends that waited for a publish lease: no terminal state is shown while one lives.
WITH t AS (
    SELECT id, attempt, coalesce(pending_state, 'CANCELED') AS final
    FROM task
    WHERE phase = 'waiting' AND (pending_state IS NOT NULL OR state = 'CANCELING')
      AND (publish_until IS NULL OR publish_until <= now())
    ORDER BY id LIMIT 500
    FOR NO KEY UPDATE SKIP LOCKED
), u AS (
    UPDATE task SET state = t.final, phase = 'ended', ended_at = now(), pending_state = NULL, publisher = NULL,
                    publish_until = NULL, attempt = greatest(t.attempt, 1), version = task.version + 1
    FROM t WHERE task.id = t.id
    RETURNING task.id, task.attempt, task.state
), never_begun AS (
    INSERT INTO attempt (task_id, number, backend, external_name, closed, ended_at)
    SELECT id, 1, '', '', true, now() FROM t WHERE attempt = 0
), event AS (
    INSERT INTO task_event (task_id, number, kind, detail) SELECT id, attempt, 'end', state FROM u
)
SELECT id, state FROM u;

-- name: refuse_waiting
-- A waiting task that no backend can ever take ends in SYSTEM_ERROR, with the reason as its system log.
WITH t AS (
    SELECT t.id, t.attempt, r.reason
    FROM task t JOIN unnest($1::text[], $2::integer[], $3::text[]) AS r(id, version, reason)
         ON t.id = r.id AND t.version = r.version
    WHERE t.phase = 'waiting' AND t.state <> 'CANCELING'
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), u AS (
    UPDATE task SET pending_state = 'SYSTEM_ERROR', attempt = t.attempt + 1, version = task.version + 1
    FROM t WHERE task.id = t.id
    RETURNING task.id
), noted AS (
    -- the reason outlives the wait in the log entry that never started
    INSERT INTO attempt (task_id, number, backend, external_name, closed, ended_at, notes)
    SELECT t.id, t.attempt + 1, '', '', true, now(), jsonb_build_array(t.reason) FROM t
), counted AS (
    INSERT INTO task_event (task_id, number, kind, detail) SELECT t.id, t.attempt + 1, 'refused', t.reason FROM t
)
SELECT id FROM u;

-- name: task_counts
-- For the metrics. What agents have is counted; of a long queue no more than its first 100,000.
SELECT t.state, coalesce(a.backend, 'none') AS backend, count(*) AS tasks
FROM task t LEFT JOIN attempt a ON a.task_id = t.id AND a.number = t.attempt AND NOT a.closed
WHERE t.phase IN ('assigned', 'started') GROUP BY 1, 2
UNION ALL
SELECT w.state, 'none', count(*) FROM (SELECT state FROM task WHERE phase = 'waiting' LIMIT 100000) w GROUP BY 1;

-- name: count_leases
SELECT count(*) FROM task WHERE phase IN ('assigned', 'started') AND publish_until > now();

-- name: oldest_waiting
-- Ids are ordered by time: the first is the oldest. It is one of the owners' first ones, as task_waiting has them: in the
-- order of ids alone, what ended would be walked through.
WITH RECURSIVE owners AS (
    (SELECT owner FROM task WHERE phase = 'waiting' ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT t.owner FROM task t WHERE t.phase = 'waiting' AND t.owner > o.owner ORDER BY t.owner LIMIT 1)
    FROM owners o WHERE o.owner IS NOT NULL
), oldest AS MATERIALIZED (
    SELECT min(h.id) AS id FROM owners o CROSS JOIN LATERAL (
        SELECT t.id FROM task t WHERE t.phase = 'waiting' AND t.owner = o.owner ORDER BY t.owner, t.id LIMIT 1
    ) h
)
SELECT extract(epoch FROM now() - t.created_at)::float8 FROM oldest JOIN task t ON t.id = oldest.id;

-- name: newest_partitions
-- Where they begin; what is older than these lists treat as one.
SELECT * FROM (
    SELECT substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''([0-9a-z]+)''\)') AS lower
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'task'::regclass
) AS p WHERE lower IS NOT NULL ORDER BY lower COLLATE "C" DESC LIMIT 24;

-- name: list_events
SELECT number, at, kind, detail FROM task_event WHERE task_id = $1 ORDER BY id;

-- name: expired_tasks
-- Only below $3: the rest goes with its partition.
SELECT id FROM task WHERE phase = 'ended' AND ended_at < now() - $1::interval AND released
  AND (id < $3 OR id >= $4)
ORDER BY ended_at LIMIT $2;

-- name: delete_tasks
WITH gone AS (
    DELETE FROM task USING unnest($1::text[]) AS w(id) WHERE task.id = w.id AND phase = 'ended' RETURNING task.id
), a AS (
    DELETE FROM attempt USING gone WHERE task_id = gone.id
), l AS (
    DELETE FROM log USING gone WHERE task_id = gone.id
), e AS (
    DELETE FROM task_event USING gone WHERE task_id = gone.id
)
DELETE FROM idempotency USING gone WHERE task_id = gone.id;

-- name: keeping_logs
-- Of these tasks, those whose logs are still kept: not ended, or ended not so long ago. A task without a row has none.
SELECT t.id FROM unnest($1::text[]) AS w(id) JOIN task t ON t.id = w.id
WHERE t.ended_at IS NULL OR $2::interval IS NULL OR t.ended_at > now() - $2::interval;
