"""A language model on this machine: its folder read, its libraries, its precision and how long it takes to read."""
