"""Answers that are JSON of a given schema."""
