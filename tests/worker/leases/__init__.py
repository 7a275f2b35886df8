"""Jobs in Redis: claims, endings, recovery."""
