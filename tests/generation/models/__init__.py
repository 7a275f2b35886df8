"""Models as they are loaded and made smaller."""
