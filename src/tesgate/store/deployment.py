"""Whose database this is: a gateway whose configuration names another deployment does not start."""

from __future__ import annotations

import hashlib
import secrets

from tesgate.store.database import Database
from tesgate.store.errors import ForeignDeployment

__all__ = ["claim_deployment", "secret_fingerprint"]

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def secret_fingerprint(secret: bytes) -> str:
    """Tells two secrets apart and gives nothing of them away."""
    return hashlib.sha256(b"tesgate deployment secret\0" + secret).hexdigest()[:16]


async def claim_deployment(database: Database, *, deployment_id: str | None, secret: bytes) -> str:
    """The deployment's id: written down at the first start (None: made up), compared at every later one.

    Raises `ForeignDeployment` when the configured id or the secret key is not the database's.
    """
    fingerprint = secret_fingerprint(secret)
    async with database.transaction() as connection:
        # Two gateways may meet an empty database at the same time.
        await connection.execute("LOCK TABLE deployment IN SHARE ROW EXCLUSIVE MODE")
        row = await connection.fetchrow("SELECT id, secret_fingerprint FROM deployment")
        if row is None:
            made = deployment_id or "".join(secrets.choice(ALPHABET) for _ in range(8))
            insert = "INSERT INTO deployment (id, secret_fingerprint) VALUES ($1, $2)"
            await connection.execute(insert, made, fingerprint)
            return made
    found: str = row["id"]
    if deployment_id is not None and deployment_id != found:
        raise ForeignDeployment(
            f"The database belongs to the deployment {found} and the configuration names {deployment_id}. If this is a "
            "copy of another deployment's database, do not go on: it would cancel that deployment's tasks. Otherwise "
            f"set deployment_id to {found}."
        )
    if row["secret_fingerprint"] != fingerprint:
        raise ForeignDeployment(
            f"The database belongs to the deployment {found}, which has another secret key: give this gateway the "
            "secret_key_file (or the data directory's secret.key) that the other gateways have. If the key is lost, "
            f"write {fingerprint} into deployment.secret_fingerprint of the database; runners that are at work are "
            "then refused and their tasks begin again."
        )
    return found
