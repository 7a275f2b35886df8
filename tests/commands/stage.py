"""What the pages' commands need: the files that they name, a server, and what their words stand for."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from datetime import date
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from impetus_backends.verified.board import make_board, to_json
from tests.backends.machine.machines import machine
from tests.backends.machine.made_up_m5 import checks
from tests.paths import DATA
from tests.producer.servers.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODELS = DATA / "models"
RERANKER = DATA / "rerankers" / "bert"
SIMULATED = {f"IMPETUS_{role}_BACKEND": "simulated" for role in ("EMBEDDING", "GENERATION", "RERANK")}
MODEL = str(MODELS / "bge")
ANSWERS = (
    *("--generation-model", str(MODELS / "tiny-says"), "--generation-backend", "mlx"),
    *("--rerank-backend", "simulated"),
)
SMALLER: dict[str, dict[str, str]] = {
    "scripts/hardware": {"--boards": "boards", "--page": "hardware.md"},
    "impetus-worker convert": {"--documents": "11", "--buckets": "1x32,1x40"},
}
"""How measurements are made short. What is measured so is worth nothing, and goes to no page."""
GENERATION: dict[str, str] = {"--tokens": "64"}
"""Of `convert --generation`."""
GIVEN = {"--chunk": ("--tokenizer", f"{MODEL}/tokenizer.json")}
"""What an option needs besides, as no simulated model has a tokenizer."""


class Stage:
    """A folder with the files that pages name, and the words that stand for something else there."""

    postgres = ""
    """Its URL, once somebody needs it."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder, self.state = folder, folder / "state"
        self.server, self.second = server, server.removesuffix("0") + "1"
        self._words = {
            "redis://queue.example:6379/0": server,
            "redis://queue:6379/0": server,
            "redis://one:6379/0": server,
            "redis://two:6379/0": self.second,
            "0.0.0.0": "127.0.0.1",
            "all-MiniLM-L6-v2": MODEL,
            "BAAI/bge-reranker-v2-m3": str(RERANKER),
            "/etc/impetus/gateway-url": "impetus-url",
            "~/.config/impetus/url": "impetus-url",
            "/var/lib/impetus": "files",
        }
        self._write(server)

    def words(self, told: Sequence[str]) -> list[str]:
        """As they are run here."""
        words = [self._word(word) for word in told]
        smaller = next((each for name, each in SMALLER.items() if " ".join(words).startswith(name)), {})
        if "--generation" in words:
            smaller = GENERATION
        for option, value in smaller.items():
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
            words += [option, value]
        return [*words, *(more for option, given in GIVEN.items() if option in words for more in given)]

    def _word(self, word: str) -> str:
        if word.startswith("postgresql://"):
            return f"{self.postgres}&table=docs"
        if word in ("0.0.0.0:6390", "8100"):
            return word.replace("0.0.0.0:6390", f"127.0.0.1:{free_port()}").replace("8100", str(free_port()))
        return self._words.get(word, word)

    def environment(self, **more: str) -> dict[str, str]:
        """Nothing of this user's own, and no device but a simulated one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
        own = {"HOME": self.folder, "XDG_STATE_HOME": self.folder, "XDG_CONFIG_HOME": self.folder / "config",
               "IMPETUS_CACHE_DIR": self.folder / "cache", "IMPETUS_STATE_DIR": self.state}  # fmt: skip
        paths = {name: str(path) for name, path in own.items()}
        return {**kept, **paths, **SIMULATED, "IMPETUS_EMBEDDING_MODEL": MODEL, **more}

    def _write(self, server: str) -> None:
        """The files that the pages name."""
        lines = [{"id": f"d{at}", "text": f"The river number {at} is long."} for at in range(6)]
        nested = [{**line, "doc": {"body": line["text"]}} for line in lines]
        rows = pa.table({"sku": ["a", "b"], "title": ["Rivers", "Hills"], "body": ["They flow.", "They stand."]})
        request = {"method": "POST", "url": "/v1/embeddings", "body": {"input": "a text", "model": "simulated"}}
        schema = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 4}}, "required": ["word"]}
        for name in ("notes", "crawl", "files", "boards"):
            (self.folder / name).mkdir()
        (self.folder / "docs.jsonl").write_text(_lines(lines))
        (self.folder / "notes" / "one.md").write_text("# One\n\nA note.\n")
        (self.folder / "crawl" / "a.jsonl.gz").write_bytes(gzip.compress(_lines(nested).encode()))
        board = make_board(machine("m5"), "bge", {"impetus-batch": "0.1.0"}, checks(), on=date(2026, 11, 27))
        (self.folder / "board.json").write_text(to_json(board))
        (self.folder / "requests.jsonl").write_text(_lines([{"custom_id": "1", **request}]))
        (self.folder / "passages.txt").write_text("Leases are renewed.\nHills stand.\n")
        (self.folder / "letters.txt").write_text("Dear Ada, the river is long. Yours, Charles.\n" * 4)
        (self.folder / "summary.json").write_text(json.dumps(schema))
        (self.folder / "impetus-url").write_text(server)
        (self.folder / "impetus-url").chmod(0o600)
        pq.write_table(rows, self.folder / "rows.parquet")
        shutil.copytree(MODELS / "tiny-says", self.folder / "my-model")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"),
            ],
            cwd=self.folder, check=True, capture_output=True,
        )  # fmt: skip

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """A command in a process of its own, as one starts it: with no server named but in its words."""
        module = {"impetus": "impetus_producer", "impetus-worker": "impetus_worker"}[words[0]]
        with open(log, "wb") as said:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", module, *words[1:]],
                cwd=self.folder, env=self.environment(IMPETUS_PORT=str(free_port()), IMPETUS_ROLES="embedding"),
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip


def _lines(values: Sequence[object]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)
