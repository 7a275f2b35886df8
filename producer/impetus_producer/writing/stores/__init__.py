"""Databases that hold vectors: one file each, of three verbs."""
