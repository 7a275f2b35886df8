"""`impetus-worker`: what is typed."""
