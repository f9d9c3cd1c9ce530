-- The readable whole: what the migrations make, proved equal by a test (tests/store/test_migrations.py).

-- One row: whose database this is. A gateway whose configuration names another deployment does not start.
CREATE TABLE deployment (
    one                boolean     PRIMARY KEY DEFAULT true CHECK (one),
    id                 text        NOT NULL,
    secret_fingerprint text        NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now()
);

-- A gateway process. It holds attempts as (id, epoch); the next epoch of the same id takes everything over.
CREATE TABLE replica (
    id      text        PRIMARY KEY,
    epoch   bigint      NOT NULL,
    host    text        NOT NULL,
    roles   text[]      NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    -- stopped in order: what it held was handed over, so adopting it is no sign of a crash
    left_at timestamptz
);

-- Loops of which one replica at a time may run one (pool watcher, janitor). Database time only.
CREATE TABLE singleton (
    name       text        PRIMARY KEY,
    replica_id text        NOT NULL,
    epoch      bigint      NOT NULL,
    until      timestamptz NOT NULL
);

-- A scratch root on some host and the process that holds it. The id is the scratch root's instance.
CREATE TABLE agent (
    id               text        PRIMARY KEY,
    pool             text        NOT NULL,
    host             text        NOT NULL,
    program_version  text        NOT NULL,
    session          bigint      NOT NULL,
    -- the newest poll of this session: a delayed older one changes nothing
    poll_number      bigint      NOT NULL DEFAULT 0,
    cpu_milli        bigint      NOT NULL,
    ram_bytes        bigint      NOT NULL,
    disk_bytes       bigint      NOT NULL,
    used_cpu_milli   bigint      NOT NULL DEFAULT 0 CHECK (used_cpu_milli >= 0),
    used_ram_bytes   bigint      NOT NULL DEFAULT 0 CHECK (used_ram_bytes >= 0),
    used_disk_bytes  bigint      NOT NULL DEFAULT 0 CHECK (used_disk_bytes >= 0),
    runtimes         text[]      NOT NULL,
    roots            jsonb       NOT NULL,
    labels           jsonb       NOT NULL,
    state            text        NOT NULL CHECK (state IN ('open', 'closed')),
    draining         boolean     NOT NULL DEFAULT false,
    -- good ticks of the pool's watcher since the agent last spoke; it is lost by this count, never by a clock
    silent_ticks     integer     NOT NULL DEFAULT 0,
    registered_at    timestamptz NOT NULL DEFAULT now(),
    seen_at          timestamptz NOT NULL DEFAULT now(),
    gpus             bigint      NOT NULL DEFAULT 0,
    used_gpus        bigint      NOT NULL DEFAULT 0 CHECK (used_gpus >= 0),
    zones            text[]      NOT NULL DEFAULT '{}',
    -- by an operator, until he takes it back; draining is what the agent says of itself
    told_to_drain    boolean     NOT NULL DEFAULT false
);

-- Tasks, attempts, logs and events are partitioned by the task's id, which begins with its time: the oldest partitions are
-- dropped together (store/partitions.py cuts and drops them). No foreign keys between them: a partition that is referred
-- to cannot be dropped quickly, and every statement that writes an attempt, a log or an event holds its task's row.
CREATE TABLE task (
    id                  text COLLATE "C" PRIMARY KEY,
    owner               text        NOT NULL,
    "group"             text,
    name                text COLLATE "C" NOT NULL DEFAULT '',
    -- what clients see, TES tesState; only moves forward (model/state.py)
    state               text        NOT NULL,
    -- what the loops go by
    phase               text        NOT NULL CHECK (phase IN ('waiting', 'assigned', 'started', 'ended')),
    -- rises with every write
    version             integer     NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT now(),
    ended_at            timestamptz,
    document            json        NOT NULL,
    tags                jsonb       NOT NULL,
    -- system logs from before the first attempt, such as backend parameters that were dropped
    notes               jsonb       NOT NULL DEFAULT '[]',
    need_cpu_milli      bigint      NOT NULL,
    need_ram_bytes      bigint      NOT NULL,
    need_disk_bytes     bigint      NOT NULL,
    -- number of the current attempt; 0 before the first
    attempt             integer     NOT NULL DEFAULT 0,
    -- a waiting task is not looked at before this (back-off between attempts)
    not_before          timestamptz,
    wait_reason         text,
    -- a waiting task that will end in this state as soon as no publish lease lives
    pending_state       text CHECK (pending_state IN ('SYSTEM_ERROR', 'CANCELED')),
    cancel_requested_at timestamptz,
    -- the publish lease: attempt number and until when, in database time
    publisher           integer,
    publish_until       timestamptz,
    -- who follows the current attempt
    replica_id          text,
    replica_epoch       bigint,
    -- how often whoever followed it died, without a minute of life between
    crashes             integer     NOT NULL DEFAULT 0,
    -- false: the backend may still hold something of an attempt
    released            boolean     NOT NULL DEFAULT true,
    need_gpus           bigint      NOT NULL DEFAULT 0,
    -- where its owner may have it run, as it was at submission; null: in every pool that is everybody's
    pools               text[],
    CONSTRAINT task_ended CHECK ((phase = 'ended') = (ended_at IS NOT NULL)),
    CONSTRAINT task_terminal CHECK (
        (phase = 'ended') = (state IN ('COMPLETE', 'EXECUTOR_ERROR', 'SYSTEM_ERROR', 'CANCELED'))
    )
) PARTITION BY RANGE (id);
CREATE TABLE task_later PARTITION OF task FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
CREATE INDEX task_owner ON task (owner, id DESC);
CREATE INDEX task_owner_state ON task (owner, state, id DESC);
CREATE INDEX task_group ON task ("group", id DESC) WHERE "group" IS NOT NULL;
CREATE INDEX task_state ON task (state, id DESC);
-- for a tag and for a key alone
CREATE INDEX task_tags ON task USING gin (tags);
-- for prefixes; an index cannot hold names of any length
CREATE INDEX task_name ON task (left(name, 64));
-- the dispatcher's queue: for each owner the oldest first
CREATE INDEX task_waiting ON task (owner, id) WHERE phase = 'waiting';
-- what has not ended, for the metrics
CREATE INDEX task_open ON task (owner, id) WHERE phase <> 'ended';
-- ends that wait for a publish lease
CREATE INDEX task_pending ON task (id) WHERE phase = 'waiting' AND (pending_state IS NOT NULL OR state = 'CANCELING');
-- what a replica follows, and what a silent one leaves to be adopted
CREATE INDEX task_held ON task (replica_id) WHERE phase IN ('assigned', 'started') OR NOT released;
-- retention
CREATE INDEX task_ended_at ON task (ended_at) WHERE phase = 'ended';

CREATE TABLE attempt (
    task_id         text COLLATE "C" NOT NULL,
    number          integer     NOT NULL,
    backend         text        NOT NULL,
    external_name   text        NOT NULL,
    agent_id        text,
    instance        text,
    handle          jsonb,
    assigned_at     timestamptz NOT NULL DEFAULT now(),
    -- a poll of its agent listed it: only what was listed once can be missing from a later poll
    acknowledged_at timestamptz,
    -- its runner spoke for the first time: TES start_time of logs[]
    reported_at     timestamptz,
    -- its first executor was started
    started_at      timestamptz,
    ended_at        timestamptz,
    -- closed: no message of this attempt changes anything any more
    closed          boolean     NOT NULL DEFAULT false,
    report_version  bigint      NOT NULL DEFAULT 0,
    -- runner.report.Snapshot without the tails, which are in log
    snapshot        json,
    -- what the gateway adds to system_logs
    notes           jsonb       NOT NULL DEFAULT '[]',
    outputs         json,
    PRIMARY KEY (task_id, number)
) PARTITION BY RANGE (task_id);
CREATE TABLE attempt_later PARTITION OF attempt FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
CREATE INDEX attempt_agent ON attempt (agent_id) WHERE NOT closed;

-- Tails of stdout and stderr, one row an attempt: [{"stdout": …, "stderr": …}, …] by executor.
CREATE TABLE log (
    task_id text COLLATE "C" NOT NULL,
    number  integer NOT NULL,
    tails   json    NOT NULL,
    PRIMARY KEY (task_id, number)
) PARTITION BY RANGE (task_id);
CREATE TABLE log_later PARTITION OF log FOR VALUES FROM (MINVALUE) TO (MAXVALUE);

-- What was decided, in order. The submission itself is the task's row.
CREATE TABLE task_event (
    id      bigint GENERATED ALWAYS AS IDENTITY,
    task_id text COLLATE "C" NOT NULL,
    number  integer     NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind    text        NOT NULL,
    detail  text,
    PRIMARY KEY (task_id, id)
) PARTITION BY RANGE (task_id);
CREATE TABLE task_event_later PARTITION OF task_event FOR VALUES FROM (MINVALUE) TO (MAXVALUE);

-- Idempotency keys, unique over all partitions of task. A key lives as long as its task.
CREATE TABLE idempotency (
    owner      text        NOT NULL,
    key        text        NOT NULL,
    task_id    text COLLATE "C" NOT NULL,
    -- SHA-256 (hex) of the body in canonical form: another body under the same key is a mistake of the client
    body_hash  text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_task ON idempotency (task_id);

CREATE TABLE token (
    name       text        PRIMARY KEY,
    kind       text        NOT NULL CHECK (kind IN ('user', 'agent')),
    -- SHA-256 (hex) of the token; the token itself is shown once and never stored
    hash       text        NOT NULL UNIQUE,
    subject    text        NOT NULL,
    groups     text[]      NOT NULL DEFAULT '{}',
    admin      boolean     NOT NULL DEFAULT false,
    pool       text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

-- Multipart uploads to object stores that runners have begun: what the janitor aborts when their attempt is over.
-- No foreign keys and no partitions: a row goes with its attempt's end, and a task's partition must be dropped quickly.
CREATE TABLE upload (
    -- the store's own name of it
    id           text        NOT NULL,
    -- name of the configured endpoint
    endpoint     text        NOT NULL,
    bucket       text        NOT NULL,
    key          text        NOT NULL,
    task_id      text COLLATE "C" NOT NULL,
    number       integer     NOT NULL,
    size_bytes   bigint      NOT NULL,
    part_bytes   bigint      NOT NULL,
    -- checksum that parts carry, by the store's name; null: the store has none
    algorithm    text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- its completion was asked for the first time: from then on it may be visible though nobody heard so
    completing_at timestamptz,
    completed_at timestamptz,
    PRIMARY KEY (task_id, number, id)
);
-- Whose an upload of this key is, and what earlier attempts have begun there.
CREATE INDEX upload_key ON upload (key);

-- Multipart uploads that were about to be begun. A row stays where it is not known whether the store has made one.
CREATE TABLE upload_intention (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id    text COLLATE "C" NOT NULL,
    number     integer     NOT NULL,
    -- name of the configured endpoint
    endpoint   text        NOT NULL,
    bucket     text        NOT NULL,
    key        text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
