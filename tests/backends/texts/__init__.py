"""Token rows of texts."""
