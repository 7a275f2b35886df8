"""The machine's processes: the supervisor, the engine, the embedded server, the service."""
