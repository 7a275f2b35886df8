"""What a model's folder says, and whether it fits together. Nothing is guessed."""
