-- name: lock_agent
SELECT id FROM agent WHERE id = $1 FOR NO KEY UPDATE;

-- name: register_agent
-- protocol: restart. A new session of an instance, known or new. What it uses is counted anew from its open attempts.
-- What an operator said of draining outlives its restarts.
INSERT INTO agent (id, pool, host, program_version, session, cpu_milli, ram_bytes, disk_bytes, runtimes, roots, labels,
                   state, gpus, zones)
VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9, $10, 'open', $11, $12)
ON CONFLICT (id) DO UPDATE SET
    host = excluded.host, program_version = excluded.program_version,
    session = agent.session + 1, poll_number = 0, cpu_milli = excluded.cpu_milli, ram_bytes = excluded.ram_bytes,
    disk_bytes = excluded.disk_bytes, runtimes = excluded.runtimes, roots = excluded.roots, labels = excluded.labels,
    gpus = excluded.gpus, zones = excluded.zones,
    state = 'open', draining = false, silent_ticks = 0, seen_at = now(), registered_at = now(),
    used_cpu_milli = coalesce((SELECT sum(t.need_cpu_milli) FROM attempt a JOIN task t ON t.id = a.task_id
                               WHERE a.agent_id = agent.id AND NOT a.closed), 0),
    used_ram_bytes = coalesce((SELECT sum(t.need_ram_bytes) FROM attempt a JOIN task t ON t.id = a.task_id
                               WHERE a.agent_id = agent.id AND NOT a.closed), 0),
    used_disk_bytes = coalesce((SELECT sum(t.need_disk_bytes) FROM attempt a JOIN task t ON t.id = a.task_id
                                WHERE a.agent_id = agent.id AND NOT a.closed), 0),
    used_gpus = coalesce((SELECT sum(t.need_gpus) FROM attempt a JOIN task t ON t.id = a.task_id
                          WHERE a.agent_id = agent.id AND NOT a.closed), 0)
WHERE agent.pool = excluded.pool
RETURNING session;

-- name: hear_agent
-- protocol: poll. Gathered: hundreds of agents may come back in one moment. Only the newest session, and of it only a poll
-- that is newer than all before (a copy is not); a statement of its own, because everything else locks tasks before
-- agents. No agent is there twice.
WITH w AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::boolean[], $5::text[])
        AS w(id, session, number, draining, pool)
), g AS (
    SELECT agent.id, agent.poll_number, w.number, w.draining
    FROM w JOIN agent ON agent.id = w.id
    WHERE agent.session = w.session AND agent.state = 'open' AND agent.pool = w.pool
    ORDER BY agent.id
    FOR NO KEY UPDATE OF agent
)
UPDATE agent SET seen_at = now(), silent_ticks = 0, draining = g.draining,
                 poll_number = greatest(g.poll_number, g.number)
FROM g WHERE agent.id = g.id
RETURNING agent.id, g.poll_number < g.number AS newest;

-- name: open_agents
SELECT id, pool, host, cpu_milli, ram_bytes, disk_bytes, gpus, used_cpu_milli, used_ram_bytes, used_disk_bytes, used_gpus,
       runtimes, roots, labels, zones, draining, told_to_drain, session, silent_ticks, program_version, seen_at
FROM agent WHERE state = 'open' ORDER BY id;

-- name: all_agents
-- For people. Of each the attempts that are not over; the index attempt_agent has no others.
SELECT g.*, extract(epoch FROM now() - g.seen_at)::float8 AS unseen,
       coalesce((SELECT array_agg(a.task_id || '-' || a.number ORDER BY a.task_id)
                 FROM attempt a WHERE a.agent_id = g.id AND NOT a.closed), '{}') AS attempts
FROM agent g ORDER BY g.pool, g.host, g.id;

-- name: drain_agents
-- By id, or by the name of the host; $3 is the pool of whoever asks with an agent's token (then by id alone), else null. Lost
-- agents too: they come back as they were told.
WITH g AS (
    SELECT id FROM agent WHERE id = $1 AND ($3::text IS NULL OR pool = $3) OR host = $1 AND $3::text IS NULL
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE agent SET told_to_drain = $2 FROM g WHERE agent.id = g.id
RETURNING agent.id, agent.host, agent.pool, agent.state;

-- name: agents_roots
-- Lost agents may come back, and their roots with them; one may have done so since the open ones were read.
SELECT DISTINCT r.root FROM agent, jsonb_array_elements(roots) AS r(root);

-- name: count_silence
-- One good tick: gateway and database both worked since the last one. Locked in the order of polls.
WITH g AS (
    SELECT id FROM agent WHERE state = 'open' ORDER BY id FOR NO KEY UPDATE
)
UPDATE agent SET silent_ticks = silent_ticks + 1 FROM g WHERE agent.id = g.id
RETURNING agent.id, agent.session, agent.silent_ticks;

-- name: close_agent
-- protocol: lost agent. The session is unchanged and it is still silent.
UPDATE agent SET state = 'closed' WHERE id = $1 AND session = $2 AND state = 'open' AND silent_ticks >= $3
RETURNING id;

-- name: attempts_of_closed_agents
SELECT t.id, t.attempt, t.version, t.replica_id, t.replica_epoch, g.id AS agent_id, g.host
FROM agent g JOIN attempt a ON a.agent_id = g.id AND NOT a.closed JOIN task t ON t.id = a.task_id AND t.attempt = a.number
WHERE g.state = 'closed' AND t.phase <> 'ended'
ORDER BY t.id LIMIT 1000;

-- name: forget_agents
-- Agents that were lost long ago and hold nothing.
DELETE FROM agent g WHERE g.state = 'closed' AND g.seen_at < now() - $1::interval
  AND NOT EXISTS (SELECT FROM attempt a WHERE a.agent_id = g.id AND NOT a.closed);
