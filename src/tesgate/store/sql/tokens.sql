-- name: create_token
INSERT INTO token (name, kind, hash, subject, groups, admin, pool, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::interval)
ON CONFLICT (name) DO NOTHING RETURNING name;

-- name: replace_token
-- The laptop's own agent token: written anew by every start, under the same name.
INSERT INTO token (name, kind, hash, subject, groups, admin, pool)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (name) DO UPDATE SET hash = excluded.hash, subject = excluded.subject, groups = excluded.groups,
                                 admin = excluded.admin, pool = excluded.pool, revoked_at = NULL, expires_at = NULL;

-- name: find_token
-- Gathered: many clients share one token.
SELECT hash, name, kind, subject, groups, admin, pool FROM token
WHERE hash = ANY($1::text[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: list_tokens
SELECT name, kind, subject, groups, admin, pool, created_at, expires_at, revoked_at FROM token ORDER BY created_at;

-- name: revoke_token
UPDATE token SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL RETURNING name;

-- name: forget_tokens
-- They let nobody in any more, and whoever lists them has seen them for long enough.
DELETE FROM token WHERE least(revoked_at, expires_at) < now() - interval '90 days';
