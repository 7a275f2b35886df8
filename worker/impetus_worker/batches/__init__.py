"""Jobs into batches for the engine, and its answers into outcomes."""
