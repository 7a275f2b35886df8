"""Text out of Markdown, HTML and PDF, in a process of its own: what a hostile file takes is that process's."""
