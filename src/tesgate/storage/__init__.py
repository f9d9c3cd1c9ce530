"""The gateway's side of storage: its own workspace."""
