"""`hf://` by the library that everybody has for it, from a server that answers as the hub does, as far as it is asked.

Source of the answers: https://huggingface.co/docs/hub/api and what huggingface_hub 2.4 asks.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import parquet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_API, _FILES = "/api/datasets/me/docs", "/datasets/me/docs/resolve/main/"
_READ = """
import json, sys
from impetus_producer.reading.source import open_source
try:
    print(json.dumps([[each.id, each.text, each.file] for each in open_source(sys.argv[1])]))
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """The data set `me/docs` of these files; its URL."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content_Length": str(len(body)), "ETag": '"e"'}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.removeprefix(_FILES)
            if path.startswith(f"{_API}/tree/main"):
                self.say(tree(path.removeprefix(f"{_API}/tree/main").strip("/")))
            elif path.startswith(_API):
                self.say({"id": "me/docs", "sha": "a" * 40, "siblings": []})
            elif name in files:
                begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
                part = files[name][int(begin or 0) : int(end) + 1 if end else None]
                place = f"bytes {int(begin or 0)}-{int(begin or 0) + len(part) - 1}/{len(files[name])}"
                self.answer(part, 206 if begin else 200, Content_Range=place)
            else:
                self.answer(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET  # noqa: N815 - the base calls it so

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say([])

        def say(self, said: Any) -> None:
            self.answer(json.dumps(said).encode(), Content_Type="application/json")

    def tree(below: str) -> list[dict[str, Any]]:
        depth = len(below.split("/")) if below else 0
        inside = [name for name in files if name.startswith(f"{below}/" if below else "")]
        names = {"/".join(name.split("/")[: depth + 1]) for name in inside}
        return [
            {"type": "file", "path": name, "size": len(files[name]), "oid": "f" * 40}
            if name in files
            else {"type": "directory", "path": name, "oid": "d" * 40}
            for name in sorted(names)
        ]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read(endpoint: str, url: str) -> Any:
    """By a process of its own, for the library looks for its server when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _READ, url], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.system
def test_a_data_set_is_read_through_huggingface_hub() -> None:
    table = io.BytesIO()
    parquet.write_table(pa.table({"id": ["p", "q"], "text": ["P", "Q"]}), table)
    files = {
        "README.md": b"# docs",
        "data/0.jsonl": b'{"id": "a", "text": "A"}\n{"id": "b", "text": "B"}\n',
        "data/1.jsonl.gz": gzip.compress(b'{"id": "c", "text": "C"}\n'),
        "data/t.parquet": table.getvalue(),
    }
    with hub(files) as endpoint:
        several = read(endpoint, "hf://datasets/me/docs/data/*.jsonl*")
        alone = read(endpoint, "hf://datasets/me/docs/data/t.parquet")
        missing = read(endpoint, "hf://datasets/me/others/data/*.jsonl")
    assert [each[:2] for each in several] == [["a", "A"], ["b", "B"], ["c", "C"]]
    assert several[2][2] == "hf://datasets/me/docs/data/1.jsonl.gz"
    assert [each[:2] for each in alone] == [["p", "P"], ["q", "Q"]]
    assert missing.startswith("InvalidRequestError: ")
    assert "hf://datasets/me/others/data/*.jsonl" in missing
