"""The `impetus` command: what is typed."""
