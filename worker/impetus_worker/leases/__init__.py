"""A job in Redis: how it is claimed, held and ended."""
