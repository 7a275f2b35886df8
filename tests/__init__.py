"""What all tests have in common, before any of them imports anything."""

import os

# Threads of OpenBLAS wait for each other by spinning, and other tests have work for the processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
