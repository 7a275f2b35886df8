"""Whole workers at a real server."""
