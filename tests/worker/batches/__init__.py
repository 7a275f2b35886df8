"""Jobs into batches and back, without Redis, processes or models."""
