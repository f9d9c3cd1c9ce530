-- name: assign
-- protocol: assign. Attempt and room in one statement, global over replicas: an agent that has not got room for all
-- that this round wants of it gets none of it, and the next round looks again.
WITH pick AS (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::text[]) AS p(id, version, agent_id)
), t AS (
    SELECT t.id, t.attempt + 1 AS number, t.owner, p.agent_id, t.need_cpu_milli, t.need_ram_bytes, t.need_disk_bytes,
           t.need_gpus
    FROM task t JOIN pick p ON p.id = t.id AND p.version = t.version
    WHERE t.phase = 'waiting' AND t.state <> 'CANCELING' AND t.pending_state IS NULL
      AND EXISTS (SELECT FROM replica WHERE id = $4 AND epoch = $5)
    ORDER BY t.id
    FOR NO KEY UPDATE OF t SKIP LOCKED
), wanted AS (
    SELECT agent_id, sum(need_cpu_milli)::bigint AS cpu, sum(need_ram_bytes)::bigint AS ram,
           sum(need_disk_bytes)::bigint AS disk, sum(need_gpus)::bigint AS gpus
    FROM t GROUP BY agent_id
), g AS (
    SELECT id FROM agent WHERE id IN (SELECT agent_id FROM wanted) ORDER BY id FOR NO KEY UPDATE
), room AS (
    UPDATE agent SET used_cpu_milli = used_cpu_milli + w.cpu, used_ram_bytes = used_ram_bytes + w.ram,
                     used_disk_bytes = used_disk_bytes + w.disk, used_gpus = used_gpus + w.gpus
    FROM g JOIN wanted w ON w.agent_id = g.id
    WHERE agent.id = g.id AND agent.state = 'open' AND NOT agent.draining AND NOT agent.told_to_drain
      -- of what they need nothing there may be less than is taken: an agent came back with less
      AND (w.cpu = 0 OR agent.used_cpu_milli + w.cpu <= agent.cpu_milli)
      AND (w.ram = 0 OR agent.used_ram_bytes + w.ram <= agent.ram_bytes)
      AND (w.disk = 0 OR agent.used_disk_bytes + w.disk <= agent.disk_bytes)
      AND (w.gpus = 0 OR agent.used_gpus + w.gpus <= agent.gpus)
    RETURNING agent.id
), u AS (
    UPDATE task SET phase = 'assigned',
                    -- a retry goes on as what clients saw before
                    state = CASE WHEN task.state = 'QUEUED' THEN 'INITIALIZING' ELSE task.state END,
                    attempt = t.number, replica_id = $4, replica_epoch = $5, released = $7, wait_reason = NULL,
                    not_before = NULL, version = task.version + 1
    FROM t JOIN room ON room.id = t.agent_id
    WHERE task.id = t.id
    RETURNING task.id, task.version, t.number, t.agent_id
), a AS (
    INSERT INTO attempt (task_id, number, backend, external_name, agent_id, instance)
    SELECT u.id, u.number, $6, $8 || u.id || '-' || u.number, u.agent_id, u.agent_id FROM u
), event AS (
    INSERT INTO task_event (task_id, number, kind, detail) SELECT u.id, u.number, 'assign', u.agent_id FROM u
)
SELECT id, version, number, agent_id, $8 || id || '-' || number AS external_name FROM u;

-- name: agent_orders
-- Everything that the answer to a poll depends on: what the agent has, and what it should have. Of what is to be started
-- also what its plan is computed from: the plan itself is never stored. (OFFSET 0: one row after the other, by the primary
-- keys. Costs count all partitions, though all but one are left out, and a join would read every open attempt.)
WITH h AS (
    SELECT * FROM unnest($2::text[], $3::integer[]) AS h(task_id, number)
), w AS (
    SELECT task_id, number FROM attempt WHERE agent_id = $1 AND NOT closed
    UNION
    SELECT task_id, number FROM h
), o AS (
    SELECT a.task_id, a.number, a.closed OR t.attempt <> a.number AS closed,
           a.acknowledged_at IS NOT NULL AS acknowledged, t.state = 'CANCELING' AS canceling, t.version,
           a.agent_id IS NOT DISTINCT FROM $1 AS its_own, a.external_name, t.document
    FROM w
         CROSS JOIN LATERAL (SELECT * FROM attempt WHERE task_id = w.task_id AND number = w.number OFFSET 0) a
         CROSS JOIN LATERAL (SELECT * FROM task WHERE id = w.task_id OFFSET 0) t
)
SELECT task_id, number, closed, acknowledged, canceling, version, its_own, external_name,
       CASE WHEN NOT closed AND its_own AND NOT acknowledged AND NOT canceling
                 AND NOT EXISTS (SELECT FROM h WHERE h.task_id = o.task_id AND h.number = o.number)
            THEN document END AS document
FROM o ORDER BY task_id;

-- name: acknowledge
-- protocol: acknowledge. Also where a report came first: only what was listed can be missing later, and it is not told to
-- start again. The task is locked before its attempt, as everywhere.
WITH t AS (
    SELECT t.id, t.attempt, t.phase
    FROM unnest($2::text[], $3::integer[]) AS h(task_id, number)
         JOIN task t ON t.id = h.task_id AND t.attempt = h.number
    WHERE t.phase IN ('assigned', 'started')
    ORDER BY t.id
    FOR NO KEY UPDATE OF t
), a AS (
    UPDATE attempt SET acknowledged_at = coalesce(acknowledged_at, now())
    FROM t WHERE attempt.task_id = t.id AND attempt.number = t.attempt AND attempt.agent_id = $1 AND NOT attempt.closed
    RETURNING attempt.task_id, t.phase
)
UPDATE task SET phase = 'started', version = task.version + 1 FROM a WHERE task.id = a.task_id AND a.phase = 'assigned';

-- name: report
-- protocol: report. Gathered, as publish and finish are: each row has its own guard, no task is there twice, and tasks are
-- locked in the order of their ids. The newest snapshot wins; whoever holds the publish lease has it renewed by every
-- answer.
WITH w AS (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::boolean[])
        AS w(task_id, number, instance, version, snapshot, tails, started)
), x AS (
    SELECT w.*, t.state, t.phase, a.report_version,
           t.publisher = w.number AND t.publish_until > now() AND t.state <> 'CANCELING' AS leased
    FROM w JOIN task t ON t.id = w.task_id AND t.attempt = w.number
           JOIN attempt a ON a.task_id = w.task_id AND a.number = w.number
    WHERE a.instance = w.instance AND NOT a.closed
    ORDER BY t.id
    FOR NO KEY UPDATE OF t, a
), newer AS (
    UPDATE attempt SET snapshot = x.snapshot::json, report_version = x.version,
                       reported_at = coalesce(reported_at, now()),
                       started_at = CASE WHEN x.started THEN coalesce(started_at, now()) ELSE started_at END
    FROM x WHERE attempt.task_id = x.task_id AND attempt.number = x.number AND x.report_version < x.version
), logged AS (
    INSERT INTO log (task_id, number, tails)
    SELECT task_id, number, tails::json FROM x WHERE tails IS NOT NULL AND report_version < version
    ON CONFLICT (task_id, number) DO UPDATE SET tails = excluded.tails
), u AS (
    UPDATE task SET
        state = CASE WHEN x.started AND x.state IN ('QUEUED', 'INITIALIZING') THEN 'RUNNING' ELSE task.state END,
        phase = 'started',
        publish_until = CASE WHEN x.leased THEN now() + $8::interval ELSE task.publish_until END,
        version = task.version + 1
    FROM x
    WHERE task.id = x.task_id
      AND (x.leased OR x.phase = 'assigned' OR x.started AND x.state IN ('QUEUED', 'INITIALIZING'))
)
SELECT x.task_id, x.state = 'CANCELING' AS stop, coalesce(x.leased, false) AS leased, false AS done FROM x;

-- name: publish
-- protocol: publish. Gathered. Own lease, or none alive; not for a cancelled or ended task.
WITH w AS (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::boolean[])
        AS w(task_id, number, instance, version, snapshot, tails, started)
), x AS (
    SELECT w.*, t.state, a.report_version,
           t.publish_until IS NULL OR t.publish_until <= now() OR t.publisher = w.number AS free
    FROM w JOIN task t ON t.id = w.task_id AND t.attempt = w.number
           JOIN attempt a ON a.task_id = w.task_id AND a.number = w.number
    WHERE a.instance = w.instance AND NOT a.closed
    ORDER BY t.id
    FOR NO KEY UPDATE OF t, a
), newer AS (
    UPDATE attempt SET snapshot = x.snapshot::json, report_version = x.version,
                       reported_at = coalesce(reported_at, now()),
                       started_at = CASE WHEN x.started THEN coalesce(started_at, now()) ELSE started_at END
    FROM x WHERE attempt.task_id = x.task_id AND attempt.number = x.number AND x.report_version < x.version
), logged AS (
    INSERT INTO log (task_id, number, tails)
    SELECT task_id, number, tails::json FROM x WHERE tails IS NOT NULL AND report_version < version
    ON CONFLICT (task_id, number) DO UPDATE SET tails = excluded.tails
), u AS (
    UPDATE task SET publisher = x.number, publish_until = now() + $8::interval,
                    state = CASE WHEN x.started AND x.state IN ('QUEUED', 'INITIALIZING') THEN 'RUNNING'
                                 ELSE task.state END,
                    phase = 'started', version = task.version + 1
    FROM x WHERE task.id = x.task_id AND x.free AND x.state <> 'CANCELING'
    RETURNING task.id
)
SELECT x.task_id, x.state = 'CANCELING' AS stop, u.id IS NOT NULL AS leased, false AS done
FROM x LEFT JOIN u ON u.id = x.task_id;

-- name: finish
-- protocol: finish. Gathered. Terminal, room free; while another attempt's lease lives it has to wait.
WITH w AS (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[])
        AS w(task_id, number, instance, version, snapshot, tails, final, outputs)
), x AS (
    SELECT w.*, t.state, a.agent_id, t.need_cpu_milli, t.need_ram_bytes, t.need_disk_bytes, t.need_gpus,
           t.publish_until IS NULL OR t.publish_until <= now() OR t.publisher = w.number AS free
    FROM w JOIN task t ON t.id = w.task_id AND t.attempt = w.number
           JOIN attempt a ON a.task_id = w.task_id AND a.number = w.number
    WHERE a.instance = w.instance AND NOT a.closed AND t.phase <> 'ended'
    ORDER BY t.id
    FOR NO KEY UPDATE OF t, a
), ok AS (
    SELECT * FROM x WHERE free AND state <> 'CANCELING'
), u AS (
    UPDATE task SET state = ok.final, phase = 'ended', ended_at = now(), publisher = NULL, publish_until = NULL,
                    crashes = 0, version = task.version + 1
    FROM ok WHERE task.id = ok.task_id
    RETURNING task.id
), a AS (
    UPDATE attempt SET closed = true, ended_at = now(), snapshot = ok.snapshot::json, outputs = ok.outputs::json,
                       report_version = ok.version, reported_at = coalesce(reported_at, now())
    FROM ok WHERE attempt.task_id = ok.task_id AND attempt.number = ok.number
), logged AS (
    INSERT INTO log (task_id, number, tails) SELECT task_id, number, tails::json FROM ok WHERE tails IS NOT NULL
    ON CONFLICT (task_id, number) DO UPDATE SET tails = excluded.tails
), freed AS (
    SELECT agent_id, sum(need_cpu_milli)::bigint AS cpu, sum(need_ram_bytes)::bigint AS ram,
           sum(need_disk_bytes)::bigint AS disk, sum(need_gpus)::bigint AS gpus
    FROM ok GROUP BY agent_id
), g AS (
    SELECT id FROM agent WHERE id IN (SELECT agent_id FROM freed) ORDER BY id FOR NO KEY UPDATE
), room AS (
    UPDATE agent SET used_cpu_milli = greatest(0, used_cpu_milli - freed.cpu),
                     used_ram_bytes = greatest(0, used_ram_bytes - freed.ram),
                     used_disk_bytes = greatest(0, used_disk_bytes - freed.disk),
                     used_gpus = greatest(0, used_gpus - freed.gpus)
    FROM g JOIN freed ON freed.agent_id = g.id WHERE agent.id = g.id
), event AS (
    INSERT INTO task_event (task_id, number, kind, detail) SELECT task_id, number, 'finish', final FROM ok
)
SELECT x.task_id, x.state = 'CANCELING' AS stop, false AS leased, u.id IS NOT NULL AS done
FROM x LEFT JOIN u ON u.id = x.task_id;

-- name: close_attempt
-- protocol: failed, stopped, lost attempt. The attempt is over without having finished its task: the task waits for a
-- further attempt, or ends, at once or when the publish lease that still lives is over.
--   $3 kind; 'failed' and 'stopped' come from the runner, which has let go of its own lease; 'lost' has not
--   $4 note for system_logs, $5 attempts at most, $6 back-off, $7 instance (runner) or null,
--   $8 replica, $9 epoch (owner) or null, $10 version that the decision was made from or null, $11 snapshot, $12 tails,
--   $13 a further attempt may help, $14 report's version or null, $15 session and $16 number of the poll that the attempt
--   was missing from, or null: a newer poll may have listed it
WITH x AS (
    SELECT t.id, t.state, a.agent_id, t.need_cpu_milli, t.need_ram_bytes, t.need_disk_bytes, t.need_gpus,
           t.publisher = $2 AND $3 <> 'lost' AS lets_go,
           CASE WHEN t.state = 'CANCELING' THEN 'CANCELED'
                WHEN $13 AND t.attempt < $5 THEN NULL
                ELSE 'SYSTEM_ERROR' END AS final,
           t.publish_until > now() AND NOT (t.publisher = $2 AND $3 <> 'lost') AS blocked
    FROM task t JOIN attempt a ON a.task_id = $1 AND a.number = $2
    WHERE t.id = $1 AND t.attempt = $2 AND NOT a.closed AND t.phase <> 'ended'
      AND ($7::text IS NULL OR a.instance = $7)
      AND ($10::integer IS NULL OR t.version = $10)
      AND ($8::text IS NULL OR t.replica_id = $8 AND t.replica_epoch = $9)
      AND ($3 <> 'stopped' OR t.state = 'CANCELING')
      AND ($14::bigint IS NULL OR a.report_version < $14)
      AND ($15::bigint IS NULL
           OR EXISTS (SELECT FROM agent g WHERE g.id = a.agent_id AND g.session = $15 AND g.poll_number = $16))
    FOR NO KEY UPDATE OF t, a
), u AS (
    UPDATE task SET
        phase = CASE WHEN x.final IS NOT NULL AND x.blocked IS NOT TRUE THEN 'ended' ELSE 'waiting' END,
        state = CASE WHEN x.final IS NOT NULL AND x.blocked IS NOT TRUE THEN x.final ELSE task.state END,
        ended_at = CASE WHEN x.final IS NOT NULL AND x.blocked IS NOT TRUE THEN now() END,
        pending_state = CASE WHEN x.blocked THEN x.final END,
        publisher = CASE WHEN x.lets_go THEN NULL ELSE task.publisher END,
        publish_until = CASE WHEN x.lets_go THEN NULL ELSE task.publish_until END,
        not_before = CASE WHEN x.final IS NULL THEN now() + $6::interval END,
        wait_reason = CASE WHEN x.final IS NULL THEN 'attempt ' || $2 || ' was ' || $3 || ': ' || $4 END,
        replica_id = NULL, replica_epoch = NULL, version = task.version + 1
    FROM x WHERE task.id = $1
    RETURNING task.id, task.phase, task.state
), a AS (
    UPDATE attempt SET closed = true, ended_at = now(),
                       notes = CASE WHEN $4 = '' THEN notes ELSE notes || to_jsonb($4::text) END,
                       snapshot = coalesce($11::json, snapshot), report_version = coalesce($14, report_version)
    FROM x WHERE attempt.task_id = $1 AND attempt.number = $2
), logged AS (
    INSERT INTO log (task_id, number, tails) SELECT $1, $2, $12::json FROM x WHERE $12::json IS NOT NULL
    ON CONFLICT (task_id, number) DO UPDATE SET tails = excluded.tails
), room AS (
    UPDATE agent SET used_cpu_milli = greatest(0, used_cpu_milli - x.need_cpu_milli),
                     used_ram_bytes = greatest(0, used_ram_bytes - x.need_ram_bytes),
                     used_disk_bytes = greatest(0, used_disk_bytes - x.need_disk_bytes),
                     used_gpus = greatest(0, used_gpus - x.need_gpus)
    FROM x WHERE agent.id = x.agent_id
), event AS (
    INSERT INTO task_event (task_id, number, kind, detail) SELECT $1, $2, $3, nullif($4, '') FROM x
)
SELECT u.phase, u.state FROM u;

-- name: said_before
-- A last word that is repeated because its answer was lost: it closed the attempt, and is heard again.
SELECT closed AND instance = $3 AND report_version = $4 FROM attempt WHERE task_id = $1 AND number = $2;

-- name: store_handle
-- protocol: launch.
WITH u AS (
    UPDATE task SET version = version + 1
    WHERE id = $1 AND attempt = $2 AND version = $3 AND replica_id = $4 AND replica_epoch = $5 AND phase <> 'ended'
    RETURNING version
), a AS (
    UPDATE attempt SET handle = $6 FROM u WHERE task_id = $1 AND number = $2
)
SELECT version FROM u;

-- name: mark_released
UPDATE task SET released = true, version = version + 1 WHERE id = $1 AND attempt = $2 AND phase = 'ended';

-- name: held_attempts
-- protocol: adopt, and the driver's own reading: what this replica follows.
SELECT t.id, t.attempt, t.version, t.phase, t.state, t.released, t.crashes, a.backend, a.external_name, a.handle,
       a.agent_id, extract(epoch FROM now() - a.assigned_at)::float8 AS age
FROM task t JOIN attempt a ON a.task_id = t.id AND a.number = t.attempt
WHERE t.replica_id = $1 AND t.replica_epoch = $2
  AND (t.phase IN ('assigned', 'started') OR t.phase = 'ended' AND NOT t.released)
  AND ($3::text IS NULL OR t.id = $3);

-- name: count_crash
-- A driver that raised, again and again: the row is counted, and at the end given up (close_attempt).
UPDATE task SET crashes = crashes + 1, version = version + 1
WHERE id = $1 AND attempt = $2 AND replica_id = $3 AND replica_epoch = $4 AND phase <> 'ended'
RETURNING crashes, version;

-- name: suspect
-- protocol: adopt. Counted before a driver acts on what it took over from a process that crashed, and taken back after
-- that: so a death in between is this row's, and no bystander's. No version: at that moment it decides nothing.
UPDATE task SET crashes = crashes + 1
WHERE id = $1 AND attempt = $2 AND replica_id = $3 AND replica_epoch = $4 AND phase <> 'ended'
RETURNING crashes;

-- name: acquit
-- $5 is what `suspect` answered: sent again, it takes nothing back twice.
UPDATE task SET crashes = $5 - 1
WHERE id = $1 AND attempt = $2 AND replica_id = $3 AND replica_epoch = $4 AND phase <> 'ended' AND crashes = $5;

-- name: reset_crashes
-- A minute of life.
UPDATE task SET crashes = 0, version = version + 1
WHERE id = ANY($1::text[]) AND crashes > 0 AND replica_id = $2 AND replica_epoch = $3
  AND phase IN ('assigned', 'started');

-- name: attempt_of
-- May this attempt still write logs? Also after its end: logs come after finish, before forget.
SELECT EXISTS (SELECT FROM attempt WHERE task_id = $1 AND number = $2);
