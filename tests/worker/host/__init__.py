"""Processes: supervisor, engine, embedded server, service, sleep."""
