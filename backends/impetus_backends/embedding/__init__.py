"""Text embeddings: the models written once, the devices they run on, and the engine that drives one of them.

Order of floors: `files`, `shapes`, `angles`, `static`, `modules` and `config` read what a model's files say, `tensors`
and `weights` what its weights are;
`operations` is what a device supplies, `architectures` are the transformers in these words and `encoder` the model
around them; `fitting` holds weights against it; `reference`, `cpu` and `mlx` are devices side by side; `golden` judges
a device, `budget` times it, `engine` serves it. `tokenizer` and `tokens` are the only part a worker needs.

A new family is a function in `folder/families`, one in `architectures`, and a small model that
scripts/recording/record_family_vectors.py makes.
"""
