"""The threads beside the loop, and their ways to the server."""
