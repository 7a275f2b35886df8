"""What a model's files state, and what in them is refused."""
