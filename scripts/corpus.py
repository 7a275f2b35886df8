#!/usr/bin/env python3
"""The docstrings of Python's own standard library: real documents that every machine has. Used by demo and bench."""

from __future__ import annotations

import argparse
import json
import sys

from impetus_backends.embedding.docstrings import Docstring, docstrings

__all__ = ["Docstring", "docstrings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="a .jsonl file to write, or - for standard output")
    parser.add_argument("--limit", type=int, help="so many of them, the outermost first")
    arguments = parser.parse_args()
    lines = (json.dumps({"id": each.id, "text": each.text}) + "\n" for each in docstrings(arguments.limit))
    if arguments.output == "-":
        sys.stdout.writelines(lines)
    else:
        with open(arguments.output, "w") as output:
            output.writelines(lines)


if __name__ == "__main__":
    main()
