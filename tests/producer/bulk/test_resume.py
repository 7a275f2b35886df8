"""Runs that end before their time, and those that go on with them: nothing is lost, and nothing is computed twice."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from impetus_producer import Producer, Store, embed_documents
from impetus_producer.bulk.kept.folder import RunFolder
from impetus_producer.bulk.kept.journal import Journal
from impetus_producer.bulk.works import EmbeddingWork
from impetus_producer.cli.main import cli
from impetus_producer.documents import Document
from impetus_producer.errors import ImpetusError
from tests.patience import eventually

from ..stock_worker import PROVENANCE, RefusedError, embedding_of, honest_work, vector_of, working
from .test_outputs import read_back

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

pytestmark = pytest.mark.system

PROGRAM = [sys.executable, "-m", "impetus_producer"]


class Bench:
    """A worker that counts what it computes, may be held, and may serve another model."""

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()
        self.fingerprint = "f"
        self.hold_at = -1
        self.held, self.go_on = threading.Event(), threading.Event()
        self._jobs = 0

    def work(self, function: str, request: dict[str, Any]) -> Any:
        self._jobs += 1
        if self._jobs == self.hold_at:
            self.held.set()
            assert self.go_on.wait(30)
        self.computed.update(request["input"])
        result = honest_work(function, request)
        return result | {"provenance": PROVENANCE | {"fingerprint": self.fingerprint}}

    @property
    def documents(self) -> Counter[str]:
        """Of what it computed, what is somebody's document."""
        return Counter({text: count for text, count in self.computed.items() if text.startswith(("text", "bad"))})


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    bench = Bench()
    with working(redis_url, bench.work):
        yield bench
        bench.go_on.set()


def texts(folder: Path, count: int) -> list[str]:
    lines = [f"text {number}" for number in range(count)]
    (folder / "in.txt").write_text("\n".join(lines) + "\n")
    return lines


def embed(url: str, *more: str, output: str = "out.jsonl", source: str = "in.txt") -> Result:
    arguments = ["embed", source, "-o", output, "--texts-per-job", "5", *more]
    return CliRunner().invoke(cli, arguments, env={"IMPETUS_REDIS_URL": url})


@contextmanager
def embedding(url: str, *more: str, output: str = "out.jsonl", **how: Any) -> Iterator[subprocess.Popen[str]]:
    command = [*PROGRAM, "embed", "in.txt", "-o", output, "--texts-per-job", "5", *more, "--redis-url", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how) as process:
        try:
            yield process
        finally:
            process.kill()


def test_after_a_kill_each_document_is_there_once_and_none_was_computed_twice(
    folder: Path, redis_url: str, bench: Bench
) -> None:
    output = "out.npy"
    lines = texts(folder, 200)
    bench.hold_at = 12
    with embedding(redis_url, "--max-backlog-jobs", "8", output=output) as process:
        assert bench.held.wait(30)
        journal = folder / f"{output}.impetus" / "answers.sqlite"
        eventually(lambda: journal.exists() and len(Store(journal)) >= 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / output).exists()
    bench.go_on.set()
    again = embed(redis_url, output=output)
    assert again.exit_code == 0, again.output
    assert "Going on with what an earlier run of" in again.stderr
    ids, vectors = read_back(folder / output)
    assert ids == [str(number) for number in range(1, 201)]
    np.testing.assert_array_equal(vectors, [vector_of(line) for line in lines])
    # Also what was in flight: its jobs were taken up again.
    assert bench.documents == Counter(lines)
    assert not (folder / f"{output}.impetus").exists()


def test_two_jobs_that_a_killed_run_left_may_carry_the_same(folder: Path, redis_url: str, bench: Bench) -> None:
    lines = texts(folder, 3)
    work = EmbeddingWork()
    keys = [work.key(Document(None, line)) for line in lines]
    producer = Producer(redis_url)
    run_folder = RunFolder(folder / "out.jsonl")
    with Journal(run_folder.path) as journal:
        for job_id, sent in (("both", keys), ("one", keys[:1])):
            payload = work.payload([Document(None, line) for line in lines[: len(sent)]])
            journal.sent({job_id: sent})
            producer.enqueue(work.queue, work.function, {job_id: payload})
    run_folder.close(done=False)
    again = embed(redis_url)
    assert again.exit_code == 0, again.output
    ids, vectors = read_back(folder / "out.jsonl")
    assert ids == ["1", "2", "3"]
    np.testing.assert_array_equal(vectors, [vector_of(line) for line in lines])


def test_a_changed_document_is_computed_anew_and_one_that_moved_is_not(
    folder: Path, redis_url: str, bench: Bench
) -> None:
    (folder / "in.jsonl").write_text('{"id": "a", "text": "text a"}\n{"id": "b", "text": "text b"}\n{"id": "c"}\n')
    (folder / "in.txt").write_text("")
    store = ("--store", "store.sqlite")
    assert embed(redis_url, *store, source="in.jsonl").exit_code == 1
    (folder / "in.jsonl").write_text('{"id": "b", "text": "text b"}\n{"id": "a", "text": "text changed"}\n')
    second = embed(redis_url, *store, source="in.jsonl")
    assert second.exit_code == 0
    assert "2 documents, 0 failed, 1 known before;" in second.stderr
    assert bench.documents == Counter(["text a", "text b", "text changed"])
    ids, vectors = read_back(folder / "out.jsonl")
    assert ids == ["b", "a"]
    np.testing.assert_array_equal(vectors, [vector_of("text b"), vector_of("text changed")])


def test_another_model_or_other_options_do_not_take_what_one_made(folder: Path, redis_url: str, bench: Bench) -> None:
    texts(folder, 3)
    store = ("--store", "store.sqlite")
    assert embed(redis_url, *store).exit_code == 0
    bench.fingerprint = "another"
    assert ", 3 known before" not in embed(redis_url, *store).stderr
    assert ", 3 known before" in embed(redis_url, *store).stderr
    assert ", 3 known before" not in embed(redis_url, *store, "--input-type", "query").stderr
    bench.fingerprint = "f"
    assert ", 3 known before" in embed(redis_url, *store).stderr
    assert set(bench.documents.values()) == {3}


def test_equal_texts_are_computed_once_however_far_apart_they_stand(folder: Path, redis_url: str, bench: Bench) -> None:
    lines = [f"text {number % 7}" for number in range(500)]
    (folder / "in.txt").write_text("\n".join(lines))
    result = embed(redis_url, "--max-backlog-jobs", "2")
    assert result.exit_code == 0
    np.testing.assert_array_equal(read_back(folder / "out.jsonl")[1], [vector_of(line) for line in lines])
    assert bench.documents == Counter(set(lines))


def test_what_fails_for_good_is_not_tried_again_and_what_may_succeed_is(
    folder: Path, redis_url: str, bench: Bench, producer: Producer
) -> None:
    (folder / "in.txt").write_text("text 0\nbad text\ntext 1\n")
    bench.hold_at = 2
    with embedding(redis_url, "--texts-per-job", "1") as process:
        assert bench.held.wait(30)
        # The third waits behind it, and somebody cancels it.
        queue: Any = eventually(lambda: producer.connection.lrange("rq:queue:embedding-bulk", 0, -1))
        (waiting,) = queue
        assert producer.handle(waiting.decode()).cancel()
        bench.go_on.set()
        assert process.wait(30) == 1
        assert process.stderr is not None
        said = process.stderr.read()
    assert "1 of those that failed may succeed another time: run the same command again" in said
    assert (folder / "out.jsonl.impetus").is_dir()
    again = embed(redis_url, "--texts-per-job", "1")
    assert again.exit_code == 1
    assert bench.documents == Counter(["text 0", "bad text", "text 1"])
    assert read_back(folder / "out.jsonl")[0] == ["1", "3"]
    assert sorted(path.name for path in folder.iterdir()) == ["in.txt", "out.jsonl", "out.jsonl.errors.jsonl"]


def test_two_runs_of_one_output_are_told_and_the_first_is_not_disturbed(
    folder: Path, redis_url: str, bench: Bench
) -> None:
    texts(folder, 20)
    bench.hold_at = 2
    with embedding(redis_url) as process:
        assert bench.held.wait(30)
        second = embed(redis_url)
        assert second.exit_code == 1
        assert f"another run (process {process.pid}) is writing 'out.jsonl': wait until it has ended" in second.stderr
        bench.go_on.set()
        assert process.wait(30) == 0
    assert len(read_back(folder / "out.jsonl")[0]) == 20


def test_to_begin_anew_forgets_what_there_was(folder: Path, redis_url: str, bench: Bench) -> None:
    texts(folder, 20)
    bench.hold_at = 3
    with embedding(redis_url) as process:
        assert bench.held.wait(30)
        eventually(lambda: len(Store(folder / "out.jsonl.impetus" / "answers.sqlite")) == 10)
        process.kill()
        process.wait()
    bench.go_on.set()
    again = embed(redis_url, "--restart")
    assert again.exit_code == 0
    assert "Going on" not in again.stderr
    assert "known before" not in again.stderr
    assert bench.documents["text 0"] == 2


def test_a_full_disk_keeps_what_is_done(folder: Path, redis_url: str, bench: Bench) -> None:
    lines = texts(folder, 1500)

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    with embedding(redis_url, preexec_fn=small_disk) as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        said = process.stderr.read()
    assert "run the same command again to go on" in said
    assert "out.jsonl.impetus/" in said
    assert "is full, or a file may not become larger (ulimit -f)" in said
    assert "disk I/O error" not in said
    assert "Traceback" not in said
    assert not (folder / "out.jsonl").exists()
    before = len(bench.documents)
    assert 0 < before < 1500
    assert embed(redis_url).exit_code == 0
    np.testing.assert_array_equal(read_back(folder / "out.jsonl")[1], [vector_of(line) for line in lines])
    # Of what was being kept when the disk was full nothing was lost: it was still in Redis.
    assert bench.documents == Counter(lines)


def test_a_disk_that_is_full_when_the_output_is_written_is_told_with_its_name(
    folder: Path, redis_url: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = texts(folder, 20)

    def full(self: Any, rows: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("impetus_producer.writing.formats._JsonLines.write", full)
        result = embed(redis_url)
    assert result.exit_code == 1
    assert "'out.jsonl' cannot be written: the disk or a quota is full" in result.stderr
    assert "run the same command again to go on" in result.stderr
    assert embed(redis_url).exit_code == 0
    assert bench.documents == Counter(lines)


def test_what_could_not_be_kept_is_still_in_redis(
    folder: Path, redis_url: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = texts(folder, 200)
    keep, calls = Store.keep, 0

    def full(self: Store, answers: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise ImpetusError("the disk is full")
        keep(self, answers)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep", full)
        assert embed(redis_url).exit_code == 1
    assert embed(redis_url).exit_code == 0
    assert bench.documents == Counter(lines)
    np.testing.assert_array_equal(read_back(folder / "out.jsonl")[1], [vector_of(line) for line in lines])


def test_vectors_of_a_model_that_is_no_longer_served_are_not_mixed_with_others(folder: Path, redis_url: str) -> None:
    lines = texts(folder, 40)
    model = "wide"

    def two_models(function: str, request: dict[str, Any]) -> Any:
        made = embedding_of([request["input"]] if isinstance(request["input"], str) else request["input"])
        if model == "wide":
            return made | {"model": model, "provenance": PROVENANCE | {"fingerprint": "wide"}}
        count = made["embeddings"]["shape"][0]
        narrow = {"dtype": "float32", "shape": [count, 1], "encoding": "float", "data": [[1.0]] * count}
        return made | {"embeddings": narrow, "model": model, "provenance": PROVENANCE | {"fingerprint": "narrow"}}

    def changes(function: str, request: dict[str, Any]) -> Any:
        nonlocal model
        answer = two_models(function, request)
        model = "narrow"
        return answer

    with working(redis_url, changes):
        mixed = embed(redis_url)
        assert "vectors of 8 and of 1 dimensions came back" in mixed.stderr
        assert embed(redis_url).exit_code == 0
    assert read_back(folder / "out.jsonl")[1].shape == (len(lines), 1)


def test_a_folder_of_others_is_not_touched(folder: Path, redis_url: str) -> None:
    texts(folder, 1)
    (folder / "out.jsonl.impetus").mkdir()
    (folder / "out.jsonl.impetus" / "diary").write_text("dear diary")
    result = embed(redis_url)
    assert (result.exit_code, "is there and none of ours" in result.stderr) == (2, True)
    (folder / "store.sqlite").write_text("no database " * 100)
    (folder / "other").mkdir()
    result = embed(redis_url, "--store", "store.sqlite", output="other/out.jsonl")
    assert (result.exit_code, "'store.sqlite' cannot be read or written" in result.stderr) == (1, True)
    assert list((folder / "other").iterdir()) == []
    assert (folder / "store.sqlite").read_text() == "no database " * 100


def test_a_lock_outlives_no_process_and_the_folder_is_gone_when_nothing_is_kept(folder: Path) -> None:
    first = RunFolder(folder / "out")
    with pytest.raises(ImpetusError, match=f"process {os.getpid()}"):
        RunFolder(folder / "out")
    first.close(done=False)
    assert list(folder.iterdir()) == []
    second = RunFolder(folder / "out")
    with Journal(second.path) as journal:
        journal.sent({"job": [b"k" * 16]})
    second.close(done=False)
    third = RunFolder(folder / "out")
    with Journal(third.path) as journal:
        assert journal.unfinished() == {"job": [b"k" * 16]}
        journal.ended(["job"])
    third.close(done=False)
    assert list(folder.iterdir()) == []


def test_a_store_is_shared_by_the_library_and_the_command(
    folder: Path, redis_url: str, bench: Bench, producer: Producer
) -> None:
    lines = texts(folder, 10)
    with Store("store.sqlite") as store:
        first = list(embed_documents(producer, [Document(line, line) for line in lines], store=store))
        second = list(embed_documents(producer, [Document(line, line) for line in lines], store=store))
        assert len(store) == 10
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.vector, other.vector)  # type: ignore[union-attr]
    assert ", 10 known before" in embed(redis_url, "--store", "store.sqlite").stderr
    assert bench.documents == Counter(lines)


def test_the_summary_as_json_counts_all_runs_that_the_output_took(folder: Path, redis_url: str) -> None:
    texts(folder, 20)
    jobs = 0

    def fails_later(function: str, request: dict[str, Any]) -> Any:
        nonlocal jobs
        jobs += 1
        if jobs == 3:
            raise RefusedError("the device is on fire")
        cut = {"prompt_tokens": 5, "truncated_texts": 1}
        return embedding_of(request["input"]) | {"usage": cut}

    with working(redis_url, fails_later):
        result = embed(redis_url, "--json", "--progress", "none")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert (said["documents"], said["written"], said["failed"], said["cached"]) == (20, 20, 0, 0)
    assert (said["tokens"], said["cut"], said["devices"]) == (8 * 5, 8, {"none": 1.0})
    assert "8 texts were longer than the model reads and cut" in result.stderr
