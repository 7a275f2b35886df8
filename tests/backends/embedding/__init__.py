"""Token rows into vectors, scores and weights."""
