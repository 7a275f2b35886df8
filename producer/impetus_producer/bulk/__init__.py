"""Work on many documents: a window of jobs, what is kept of them, and how a run goes on where it was."""
