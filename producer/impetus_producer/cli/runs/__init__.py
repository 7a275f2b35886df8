"""What runs over many documents have in common: their options, what they say as they go, and how they went."""
