"""The API in process on a real PostgreSQL, as in tests/api."""

from tests.api.conftest import client, context, live  # noqa: F401
