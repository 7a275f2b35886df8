"""Answers that keep to a schema."""
