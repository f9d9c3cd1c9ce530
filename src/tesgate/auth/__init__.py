"""From a request to a caller, and what it may do."""
