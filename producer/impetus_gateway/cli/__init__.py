"""`impetus serve`, and the commands that write the files it reads. Imports what serving needs only when it serves."""
