"""Embeddings on the Neural Engine: the one encoder as a Core ML package, and the backend that runs it.

`package` builds packages from `ops` for the shapes that `buckets` chooses; `accuracy` and `quantize` make them smaller
and say at what price; `backend` runs them on a device: the Mac's own (`macos`), or numpy over the same file
(`emulated`, `evaluator`). All but `macos` runs anywhere.
"""
