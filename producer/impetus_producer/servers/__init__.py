"""The Redis server as a client meets it: finding it, reaching it, what it lets us do, and waiting for it."""
