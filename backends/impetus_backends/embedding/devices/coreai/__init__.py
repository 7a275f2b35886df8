"""Embeddings through Core AI, which Apple offers after Core ML on macOS 27: the one encoder as an `.aimodel` asset.

`package` authors an asset from `ops`, `device` runs it: Apple's own runtime, in the library on Linux and of the system
on macOS 27.
"""
