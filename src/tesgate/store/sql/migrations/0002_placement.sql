-- Placement by facts: GPUs are room, agents have zones and can be told to drain, tasks have pools.
-- admits: 1
ALTER TABLE agent
    ADD COLUMN gpus bigint NOT NULL DEFAULT 0,
    ADD COLUMN used_gpus bigint NOT NULL DEFAULT 0 CHECK (used_gpus >= 0),
    ADD COLUMN zones text[] NOT NULL DEFAULT '{}',
    -- by an operator, until he takes it back; draining is what the agent says of itself
    ADD COLUMN told_to_drain boolean NOT NULL DEFAULT false;
ALTER TABLE task
    ADD COLUMN need_gpus bigint NOT NULL DEFAULT 0,
    -- where its owner may have it run, as it was at submission; null: in every pool that is everybody's
    ADD COLUMN pools text[];
