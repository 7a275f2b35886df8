"""How a command is told its server and its options: typed, by the environment or by a file."""
