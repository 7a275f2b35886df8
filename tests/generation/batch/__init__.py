"""What decodes together, and what it costs its neighbours."""
