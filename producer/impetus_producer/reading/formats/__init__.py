"""What is in a file: a module or two for each format."""
