"""What may be asked for, and the jobs it becomes in Redis."""
