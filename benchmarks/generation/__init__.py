"""The parts of `scripts/bench generate`, each a subject of its own; `benchmarks/generate.py` is the command."""
