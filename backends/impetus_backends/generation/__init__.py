"""Text generation with MLX: many requests decoded together, joining and leaving while the others go on.

`engine` drives mlx-lm's batch generator, `loader` reads a model folder, `prompts` turns a request into tokens,
`sampling` chooses the next token, `text` turns tokens into text and stops at stop strings, `batching` tells before
any work is claimed whether the model answers alike alone and in a batch, `structured` keeps an
answer to a JSON schema. Importing any of them imports no MLX.
"""
