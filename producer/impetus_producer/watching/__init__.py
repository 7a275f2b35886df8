"""What is on a server now, as operators see it. Reads only."""
