"""What is written, and what is not left behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from impetus_producer.outputs import open_output
from pyarrow import parquet

from impetus_producer import outputs
from impetus_producer.bulk import EmbeddedDocument
from impetus_producer.documents import FailedDocument
from impetus_producer.errors import ImpetusError, InvalidRequestError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("v.parquet", "v.jsonl", "v.npy")


def embedded(document_id: str, vector: np.ndarray | list[float]) -> EmbeddedDocument:
    return EmbeddedDocument(document_id, vector, "model", "print")


def read_back(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        vectors = table.column("vector").combine_chunks()
        return table.column("id").to_pylist(), vectors.flatten().to_numpy().reshape(len(vectors), -1)
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line["id"] for line in lines], np.array([line["embedding"] for line in lines], dtype=np.float32)
    ids = path.with_name(path.name + ".ids.jsonl").read_text().splitlines()
    return [json.loads(line) for line in ids], np.load(path)


@pytest.mark.parametrize("name", NAMES)
def test_ids_order_and_every_bit_of_the_vectors_survive_each_format(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_ROW_GROUP", 100)
    ids = [f'"{number}"\n日本 🙂' for number in range(1050)]
    vectors = np.random.default_rng(1).standard_normal((len(ids), 7)).astype(np.float32)
    vectors[0] = [0, -0.0, 1e-45, 3.4e38, 1 / 3, -1e-10, 1]
    with open_output(name) as out:
        for number, document_id in enumerate(ids):
            out.write(embedded(document_id, vectors[number] if number % 2 else vectors[number].tolist()))
    got_ids, got_vectors = read_back(folder / name)
    assert got_ids == ids
    assert got_vectors.dtype == np.float32
    np.testing.assert_array_equal(got_vectors, vectors)


def test_parquet_has_row_groups_fixed_size_vectors_and_names_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_ROW_GROUP", 100)
    with open_output("v.parquet") as out:
        for number in range(250):
            out.write(embedded(str(number), [1.0, 2.0]))
    file = parquet.ParquetFile("v.parquet")
    assert file.num_row_groups == 3
    assert str(file.schema_arrow.field("vector").type) == "fixed_size_list<element: float>[2]"
    assert file.schema_arrow.metadata == {b"impetus.model": b"model", b"impetus.fingerprint": b"print"}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_given_up_leaves_nothing_and_spoils_nothing(folder: Path, name: str) -> None:
    (folder / name).write_text("of an earlier run")
    (folder / f"{name}.errors.jsonl").write_text("of an earlier run")
    before = {path.name: path.read_text() for path in folder.iterdir()}
    out = open_output(name)
    out.write(embedded("a", [1.0]))
    out.write_failed(FailedDocument("b", "bad"))
    interrupt = KeyboardInterrupt()
    out.__exit__(KeyboardInterrupt, interrupt, None)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_errors_are_listed_and_an_earlier_runs_list_does_not_stay(folder: Path) -> None:
    errors = folder / "v.jsonl.errors.jsonl"
    with open_output("v.jsonl") as out:
        out.write(embedded("a", [1.0]))
        out.write_failed(FailedDocument("b", "bad: \ud800 日本"))
    assert [json.loads(line) for line in errors.read_text().splitlines()] == [{"id": "b", "reason": "bad: \ud800 日本"}]
    with open_output("v.jsonl") as out:
        out.write(embedded("a", [1.0]))
    assert sorted(path.name for path in folder.iterdir()) == ["v.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_when_every_document_failed_there_is_only_the_list(folder: Path, name: str) -> None:
    with open_output(name) as out:
        out.write_failed(FailedDocument("b", "bad"))
    assert [path.name for path in folder.iterdir()] == [f"{name}.errors.jsonl"]


def test_vectors_of_two_widths_are_refused(folder: Path) -> None:
    with open_output("v.npy") as out:
        out.write(embedded("a", [1.0]))
        with pytest.raises(ImpetusError, match="of 1 and of 2 dimensions"):
            out.write(embedded("b", [1.0, 2.0]))
    np.testing.assert_array_equal(np.load("v.npy"), [[1.0]])


def test_what_would_fail_at_the_end_is_told_at_the_start(folder: Path) -> None:
    (folder / "sub.npy").mkdir()
    for name, sentence in {
        "v.csv": r"must end in one of \.parquet, \.jsonl, \.npy",
        "v": "must end in one of",
        "no/v.npy": "there is no such folder",
        "sub.npy": "is a folder",
    }.items():
        with pytest.raises(InvalidRequestError, match=sentence):
            open_output(name)
    assert [path.name for path in folder.iterdir()] == ["sub.npy"]


def test_a_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("pyarrow.parquet", "v.parquet"), ("numpy", "v.npy")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(MissingExtraError, match=r"impetus-batch\[files\]"):
            open_output(name)
    assert list(folder.iterdir()) == []
