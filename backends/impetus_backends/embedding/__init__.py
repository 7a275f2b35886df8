"""Text embeddings: the models written once, the devices they run on, and the engine that drives one of them.

Order of floors: `folder` reads what a model's files state (`stored` how its tensors lie, `transformer` the shape of its
transformer, `config` and its neighbours what the model is for) and holds its weights against that; `modules` are what
follows the transformer. `devices/operations` is what a device supplies, `architectures` are the transformers in these
words and `encoder` the model around them; `reference`, `cpu` and `mlx` are devices side by side. `golden` judges a
device, `budget` times it, `engine` serves it. `texts` is the only part a worker needs.

A new family is a function in `folder/transformer/families`, one in `architectures`, and a small model that
scripts/recording/record_family_vectors.py makes.
"""
