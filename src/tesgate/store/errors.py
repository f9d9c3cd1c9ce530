"""What the store raises.

::

    StoreError
    ├── DatabaseUnavailable      the database does not answer (passing; callers wait or try again)
    ├── EmbeddedPostgresError    our own PostgreSQL cannot be started here
    ├── SchemaMismatch           the schema is older, newer or other than this program's
    └── ForeignDeployment        the database belongs to another deployment

Every message is a sentence (or two) that says what happened and what to do.
"""

__all__ = ["DatabaseUnavailable", "EmbeddedPostgresError", "ForeignDeployment", "SchemaMismatch", "StoreError"]


class StoreError(Exception):
    """Something that the store cannot do."""


class DatabaseUnavailable(StoreError):
    """PostgreSQL did not answer within the deadline, or the connection was lost in the middle of a write."""

    passing = True
    """False: it answered that it cannot (a full disk); waiting does not help."""
    locked = False
    """True: it is there, and only some row of the statement was held by another for too long."""


class EmbeddedPostgresError(StoreError):
    """The gateway's own PostgreSQL cannot be started or stopped on this machine."""


class SchemaMismatch(StoreError):
    """The database's schema is not the one that this version of tesgate was written for."""


class ForeignDeployment(StoreError):
    """The database was made for another deployment: going on could cancel somebody else's tasks."""
