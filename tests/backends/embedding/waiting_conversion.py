"""A conversion that goes on until whoever started it is no more."""

import sys

sys.stdin.read()
