"""Embeds the docstrings of Python's standard library, searches them, asks a tiny language model questions whose answers
are known, shows `rq info`, stops everything.

What runs is what a user runs: `impetus-worker run` with its embedded server, and `impetus embed`. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from scripts.corpus import docstrings

from impetus_producer import ImpetusError, Producer, connect
from impetus_producer.servers.discovery import STATE_DIR_VARIABLE, ServerNote

if TYPE_CHECKING:
    from scripts.corpus import Docstring

QUERIES = ("parse command line arguments", "compress a file", "wait until several threads are done")
DATA = Path(__file__).parents[1] / "tests" / "data"
MODEL = DATA / "models" / "tiny-says"
"""A tiny language model that knows the questions of `questions.txt` by heart, and nothing else."""
BIN = Path(sys.executable).parent
START_LIMIT_S = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2500, help="how many docstrings (default: 2500)")
    parser.add_argument(
        "--as-producer",
        action="store_true",
        help="act, all but the workers, as a Redis user with no more rights than README's producer",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="impetus-demo-") as name:
        folder = Path(name)
        try:
            print(json.dumps(show(folder, arguments.documents, as_producer=arguments.as_producer)))
        except KeyboardInterrupt:
            print("\nstopped; nothing is left running", file=sys.stderr)
            return 130
    return 0


def show(folder: Path, count: int, *, as_producer: bool = False) -> dict[str, Any]:
    say("1. A server and two workers: impetus-worker run")
    with Workers(folder, MODEL) as url:
        if as_producer:
            url = producers_url(url)
        say(f"2. Embedding {count} docstrings of the standard library: impetus embed")
        documents = docstrings(count)
        source, output = folder / "docs.jsonl", folder / "docs.parquet"
        source.write_text("".join(json.dumps({"id": each.id, "text": each.text}) + "\n" for each in documents))
        started = time.perf_counter()
        failed = subprocess.run(
            [BIN / "impetus", "embed", source, "--output", output, "--redis-url", url], check=False
        ).returncode
        embed_s = time.perf_counter() - started
        table = pq.read_table(output)
        vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
        producer = Producer(url)

        say("3. Searching them")
        search(producer, documents, vectors)

        say("4. Questions to a tiny model, all at once; the first answer is printed as it is made")
        answers, wrong = generate(producer)

        say("5. What an operator sees: rq info")
        subprocess.run([BIN / "rq", "info", "--url", url], check=True)
        say("6. Stopping everything")
    return {
        "documents": len(documents),
        "vectors": len(vectors),
        "dimensions": vectors.shape[1],
        "embed_docs_per_s": round(len(vectors) / embed_s, 1),
        "generations": answers,
        "failed": failed + wrong,
    }


def producers_url(url: str) -> str:
    """The server as a user sees it that has the rights of README's producer; made for this."""
    lines = re.findall(r"ACL SETUSER producer (?!reset)(.*)", (DATA.parents[1] / "README.md").read_text())
    password = secrets.token_hex(16)
    with connect(url) as connection:
        connection.acl_setuser("producer", enabled=True, reset=True, passwords=[f"+{password}"])
        connection.execute_command("ACL", "SETUSER", "producer", *" ".join(lines).split())
    print("   from here on as the user `producer`, who cannot touch what workers rely on")
    return url.replace("://", f"://producer:{password}@", 1)


def search(producer: Producer, documents: list[Docstring], vectors: np.ndarray) -> None:
    queries = np.asarray(producer.embed(QUERIES, input_type="query").result(timeout_s=60).vectors)
    scores = queries @ vectors.T
    for query, row in zip(QUERIES, scores, strict=True):
        print(f"\n   {query!r}")
        for place in np.argsort(-row)[:3]:
            first_line = documents[place].text.splitlines()[0]
            print(f"   {row[place]:.3f}  {documents[place].id:<42.42} {first_line:.70}")


def generate(producer: Producer) -> tuple[int, int]:
    """How many questions were asked, and how many answers are not the known ones."""
    known = [
        [line[3:] for line in pair.splitlines()]
        for pair in (DATA / "questions.txt").read_text(encoding="utf-8").strip().split("\n\n")
    ]
    handles = [
        producer.generate(messages=[{"role": "user", "content": question}], temperature=0, stream=True)
        for question, _ in known
    ]
    print(f"   {known[0][0]} ", end="")
    for piece in handles[0].stream(timeout_s=120):
        print(piece, end="", flush=True)
    print()
    wrong = 0
    for (question, answer), handle in zip(known, handles, strict=True):
        try:
            said = handle.result(timeout_s=120).text.strip()
        except ImpetusError as error:
            said = f"failed: {error}"
        wrong += said != answer
        if said != answer or handle is not handles[0]:
            print(f"   {question} {said}" + ("" if said == answer else f"   (expected: {answer})"))
    return len(known), wrong


class Workers:
    """`impetus-worker run` with a state folder of its own. It stops when this program does, however that ends."""

    def __init__(self, folder: Path, generation_model: Path) -> None:
        self._folder = folder
        self._log = folder / "workers.log"
        self._model = generation_model
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> str:
        command = [str(BIN / "impetus-worker"), "run", "--until-stdin-closes"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, "--generation-model", str(self._model)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, STATE_DIR_VARIABLE: str(self._folder / "state"), "IMPETUS_REDIS_URL": ""},
                start_new_session=True,  # Ctrl-C is for the demo, which then closes the pipe
            )
        try:
            return self._await_workers()
        except BaseException:
            self.__exit__()
            raise

    def _await_workers(self) -> str:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            note = ServerNote.read(self._folder / "state")
            if note and len(Producer(note.url).connection.smembers("rq:workers")) == 2:
                print(f"   {note.url}")
                return note.url
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"the workers did not start:\n{self._log.read_text()}")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=30)


def say(headline: str) -> None:
    print(f"\n{headline}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
