"""Bodies of OpenAI's API: requests into ours, results into theirs. Plain data, whoever carries it."""
