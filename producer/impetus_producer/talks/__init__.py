"""What is asked of a server, step by step, whoever waits for the answers: a thread or a task."""
