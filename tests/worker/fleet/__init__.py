"""The worker among the others."""
