-- admits: 1
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
-- Whose an upload of this key is, and what earlier attempts have begun there.
CREATE INDEX upload_key ON upload (key);
