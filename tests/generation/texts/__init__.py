"""Tokens of requests, and text of tokens."""
