-- admits: 1
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
