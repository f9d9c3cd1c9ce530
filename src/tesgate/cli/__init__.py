"""The command line. Start-up counts: each command imports what it needs when it runs."""
