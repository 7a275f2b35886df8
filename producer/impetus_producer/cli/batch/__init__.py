"""`impetus batch`: files of requests in the format of OpenAI's Batch API."""
