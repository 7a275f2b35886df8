"""What jobs ask for, read out of bytes that nobody vouches for."""
