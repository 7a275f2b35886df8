"""Vectors written to files: `output.py` is what a run writes to, `formats.py` how, `drafts.py` where until then."""
