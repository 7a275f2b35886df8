"""Weights in fewer bits, and what that costs in quality."""
