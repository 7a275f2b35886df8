"""Measurements: each module has one subject, prints a table and writes JSON. Run by `scripts/bench`."""
