"""rq-dashboard as the dashboard image runs it: jobs are read as JSON, and nothing from the server is unpickled.

Its own --json covers some of its pages only. The others (0.9.0: a job's page, requeueing) leave the choice to RQ, which
takes pickle, so whoever can write to the server could run code here. That default is replaced before it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module

from rq.serializers import DefaultSerializer, JSONSerializer


def read_json_only() -> None:
    """From now on RQ's default serializer, in this process, is JSON under both of its names."""
    for name in ("dumps", "loads"):
        setattr(DefaultSerializer, name, staticmethod(getattr(JSONSerializer, name)))


def main() -> None:
    read_json_only()
    sys.argv[1:1] = ["--json"]
    import_module("rq_dashboard.cli").main()


if __name__ == "__main__":
    main()
