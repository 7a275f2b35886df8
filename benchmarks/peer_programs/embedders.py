"""Other embedding servers' engines on the texts that `scripts/bench embed` gives Impetus.

Runs in the peers' environments, so it imports nothing of ours. `python embedders.py PEER MODEL_FOLDER` loads the model,
warms it up, prints `{"ready": true}`, and then for each line of standard input, `{"texts": FILE, "vectors": FILE}`,
embeds the texts (a JSON list), writes the vectors (.npy) and prints `{"seconds": ...}`: the time of the one call that
takes all texts and returns all vectors. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 32


def package(name: str) -> Any:
    # Not an import statement: these are not installed where this file is type-checked.
    return importlib.import_module(name)


class SentenceTransformers:
    """`SentenceTransformer.encode(texts, batch_size=32)` on torch's CPU: it sorts by length by itself."""

    def __init__(self, folder: str) -> None:
        self.model = package("sentence_transformers").SentenceTransformer(folder, device="cpu")

    def embed(self, texts: list[str]) -> Any:
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False, normalize_embeddings=True)


class Infinity:
    """Infinity's `AsyncEmbeddingEngine`, engine torch, in this process: without its HTTP server, which would cost it
    time. It sorts by length over its queue; all texts are given at once. fp32, as the others."""

    def __init__(self, folder: str) -> None:
        infinity = package("infinity_emb")
        arguments = infinity.EngineArgs(
            model_name_or_path=folder, engine="torch", device="cpu", dtype="float32", batch_size=BATCH,
            bettertransformer=False, model_warmup=False, compile=False,
        )  # fmt: skip
        self.loop = asyncio.new_event_loop()
        self.engine = infinity.AsyncEmbeddingEngine.from_args(arguments)
        self.loop.run_until_complete(self.engine.astart())

    def embed(self, texts: list[str]) -> Any:
        vectors, _ = self.loop.run_until_complete(self.engine.embed(sentences=texts))
        return vectors


PEERS: dict[str, type[Any]] = {"sentence-transformers": SentenceTransformers, "infinity": Infinity}


def main() -> None:
    peer = PEERS[sys.argv[1]](sys.argv[2])
    peer.embed(["warm up"] * BATCH)
    numpy = package("numpy")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        texts = json.loads(Path(order["texts"]).read_text())
        started = time.perf_counter()
        vectors = peer.embed(texts)
        seconds = time.perf_counter() - started
        numpy.save(order["vectors"], numpy.asarray(vectors, dtype="float32"))
        print(json.dumps({"seconds": seconds}), flush=True)
    # Infinity keeps threads that would hold the interpreter.
    package("os")._exit(0)


if __name__ == "__main__":
    main()
