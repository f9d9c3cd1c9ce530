"""The only SQL and the only door to PostgreSQL."""
