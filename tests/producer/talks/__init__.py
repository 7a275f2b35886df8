"""What is asked of a server, in threads and in tasks."""
