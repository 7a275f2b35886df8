"""Text embeddings: one encoder written once, the devices it runs on, and the engine that drives one of them.

Order of floors: `config` and `weights` read a model's files, `encoder` is the model, `reference`, `cpu` and `mlx` are
devices side by side, `golden` judges a device, `engine` serves it. `tokens` is the only part a worker needs.
"""
