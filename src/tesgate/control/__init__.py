"""The loops that follow tasks: no HTTP framework, no SQL text."""
