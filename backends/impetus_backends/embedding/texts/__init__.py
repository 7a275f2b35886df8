"""Texts to the token rows of a model, as sentence-transformers makes them."""
