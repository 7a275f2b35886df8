"""OpenAI's Batch API without HTTP: files of requests, run line by line, which survive whoever runs them.

Source of all shapes: https://platform.openai.com/docs/api-reference/batch and .../guides/batch
"""
