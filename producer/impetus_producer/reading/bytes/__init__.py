"""Bytes as numbered lines of text: what packs them, what encodes them."""
