"""The machine: what it is, what it allows, what it measured and what it spends."""
