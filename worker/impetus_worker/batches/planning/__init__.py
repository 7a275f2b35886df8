"""Which of what waits goes next, how much of it together, and what has to go alone."""
