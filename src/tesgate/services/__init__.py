"""Use cases: no HTTP framework, no SQL."""
