"""A model written once into a file of static shapes, a function for every bucket, and run by whatever reads it.

`buckets` chooses the shapes, `cache` keeps what was written, `backend` and `runner` serve with it, `convert` measures
it before it is preferred. A `form` is what is written: `coreml` and `coreai` beside this folder supply one each.
"""
