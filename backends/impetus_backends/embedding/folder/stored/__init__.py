"""Tensors as they lie in files: safetensors, MLX's packed ones, and what torch wrote."""
