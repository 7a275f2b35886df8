"""Impetus workers: they claim jobs from Redis, run them in batches on this machine's best device, and finish them."""
