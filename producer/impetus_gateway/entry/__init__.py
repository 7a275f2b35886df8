"""Who is let in, with how much, and what is said to whoever is not."""
