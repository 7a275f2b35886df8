"""What misbehaves, and what must hold then."""
