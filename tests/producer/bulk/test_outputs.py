"""What is written, and what is not left behind."""

from __future__ import annotations

import json
import os
import stat
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from impetus_producer.bulk.run import EmbeddedDocument
from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import ImpetusError, InvalidRequestError, MissingExtraError
from impetus_producer.writing import output
from impetus_producer.writing.output import open_output
from impetus_producer.writing.rows import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_producer.documents import DocumentId
    from impetus_producer.writing.output import Output

NAMES = ("v.parquet", "v.jsonl", "v.npy", "v.arrow")


def put(
    out: Output[EmbeddedDocument],
    document_id: DocumentId,
    vector: np.ndarray | list[float],
    row: int = 1,
    *columns: Any,
) -> None:
    document = Document(document_id, "text", row, "in.csv", columns)
    out.write(EmbeddedDocument(document_id, vector, "model", "print"), document)


def put_failed(
    out: Output[EmbeddedDocument], document_id: DocumentId, reason: str, row: int = 2, retryable: bool = False
) -> None:
    failed = FailedDocument(document_id, reason, row, retryable=retryable)
    out.write(failed, failed)


def read_back(path: Path) -> tuple[list[Any], np.ndarray]:
    if path.suffix in (".parquet", ".arrow"):
        table = parquet.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
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
    monkeypatch.setattr(output, "MOST_ROWS", 100)
    ids = [f'"{number}"\n日本 🙂' for number in range(1050)]
    vectors = np.random.default_rng(1).standard_normal((len(ids), 7)).astype(np.float32)
    vectors[0] = [0, -0.0, 1e-45, 3.4e38, 1 / 3, -1e-10, 1]
    with open_output(name) as out:
        for number, document_id in enumerate(ids):
            put(out, document_id, vectors[number] if number % 2 else vectors[number].tolist())
    got_ids, got_vectors = read_back(folder / name)
    assert got_ids == ids
    assert got_vectors.dtype == np.float32
    np.testing.assert_array_equal(got_vectors, vectors)


def test_parquet_has_row_groups_fixed_size_vectors_and_names_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MOST_ROWS", 100)
    with open_output("v.parquet") as out:
        for number in range(250):
            put(out, str(number), [1.0, 2.0])
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
    put(out, "a", [1.0])
    put_failed(out, "b", "bad")
    interrupt = KeyboardInterrupt()
    out.__exit__(KeyboardInterrupt, interrupt, None)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_errors_are_listed_and_an_earlier_runs_list_does_not_stay(folder: Path) -> None:
    errors = folder / "v.jsonl.errors.jsonl"
    with open_output("v.jsonl") as out:
        put(out, "a", [1.0])
        put_failed(out, "b", "bad: \ud800 日本")
        put_failed(out, None, "lost", 3, retryable=True)
    assert [json.loads(line) for line in errors.read_text().splitlines()] == [
        {"line": 2, "id": "b", "reason": "bad: \ud800 日本", "retryable": False},
        {"line": 3, "id": None, "reason": "lost", "retryable": True},
    ]
    with open_output("v.jsonl") as out:
        put(out, "a", [1.0])
    assert sorted(path.name for path in folder.iterdir()) == ["v.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_when_every_document_failed_an_earlier_runs_vectors_do_not_pass_for_this_ones(folder: Path, name: str) -> None:
    with open_output(name) as out:
        put(out, "a", [1.0])
    before = (folder / name).read_bytes()
    with open_output(name) as out:
        put_failed(out, "b", "bad")
    assert not (folder / name).exists()
    assert not (folder / f"{name}.ids.jsonl").exists()
    assert (folder / f"{name}.errors.jsonl").exists()
    assert str(out.set_aside) == f"{name}.before"
    assert (folder / f"{name}.before").read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_who_may_read_an_existing_file_and_what_its_name_leads_to_stay(folder: Path, name: str) -> None:
    (folder / "elsewhere").mkdir()
    target = folder / "elsewhere" / f"target{name[1:]}"
    target.write_bytes(b"of an earlier run")
    target.chmod(0o600)
    (folder / name).symlink_to(target)
    with open_output(name) as out:
        put(out, "a", [1.0])
        put_failed(out, "b", "bad")
        drafts = list(folder.rglob("drafts/*"))
        assert len(drafts) >= 2
        # Nobody else comes as far as to the drafts.
        assert {stat.S_IMODE(path.parents[1].stat().st_mode) for path in drafts} == {0o700}
    assert (folder / name).is_symlink()
    assert read_back(folder / name)[0] == ["a"]
    assert not target.is_symlink()
    for path in (target, folder / f"{name}.errors.jsonl", folder / f"{name}.ids.jsonl"):
        if path.exists():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    target.chmod(0o640)
    with open_output(name) as out:
        put(out, "a", [1.0])
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", NAMES)
def test_a_new_file_has_the_usual_permissions(folder: Path, name: str) -> None:
    (folder / "usual").write_text("")
    with open_output(name) as out:
        put(out, "a", [1.0])
    assert (folder / name).stat().st_mode == (folder / "usual").stat().st_mode


def test_ids_keep_their_type_and_a_document_without_one_is_told_by_its_row(folder: Path) -> None:
    ids: list[DocumentId] = [0, "0", None, 2**70]
    for name in NAMES:
        with open_output(name) as out:
            for row, document_id in enumerate(ids, 1):
                put(out, document_id, [1.0], row)
    lines = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    assert [(line["id"], line["row"]) for line in lines] == list(zip(ids, range(1, 5), strict=True))
    assert read_back(folder / "v.npy")[0] == [0, "0", {"row": 3}, 2**70]
    table = parquet.read_table("v.parquet")
    assert table.column("id").to_pylist() == ["0", "0", None, str(2**70)]
    assert table.column("row").to_pylist() == [1, 2, 3, 4]


def test_columns_are_written_beside_the_vectors(folder: Path) -> None:
    values = [("de", 1, None), ("日本", [1, {"a": None}], 2.5), (None, True, float("nan"))]
    for name in ("v.jsonl", "v.parquet"):
        with open_output(name, Layout({"lang": None, "odd": None, "typed": pa.float32()}, with_files=True)) as out:
            for row, value in enumerate(values, 1):
                put(out, "a", [1.0], row, *value)
    lines = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["id", "row", "file", "lang", "odd", "typed", "embedding"]
    assert [(line["lang"], line["odd"], line["typed"]) for line in lines] == [*values[:2], (None, True, None)]
    table = parquet.read_table("v.parquet")
    assert table.schema.names == ["id", "row", "file", "lang", "odd", "typed", "vector"]
    assert table.column("file").to_pylist() == ["in.csv"] * 3
    assert table.column("lang").to_pylist() == ["de", "日本", None]
    assert table.column("odd").to_pylist() == ["1", '[1, {"a": null}]', "true"]
    assert table.column("typed").type == pa.float32()
    for name, columns, sentence in (
        ("v.npy", {"lang": None}, "a .npy file has no columns"),
        ("v.jsonl", {"row": None}, "OUT has a column 'row' of its own"),
        ("v.parquet", {"vector": None}, "OUT has a column 'vector' of its own"),
    ):
        with pytest.raises(InvalidRequestError, match=sentence):
            open_output(name, Layout(columns))


def test_values_that_json_has_no_form_for_leave_lines_that_are_json(folder: Path) -> None:
    values = [b"\xff\x00", [1.0, float("nan")], {"deep": {"inf": float("-inf")}}, Decimal("1.50"), date(2026, 1, 2)]
    with open_output("v.jsonl", Layout({"odd": None})) as out:
        for row, value in enumerate(values, 1):
            put(out, "a", [1.0], row, value)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (folder / "v.jsonl").read_text().splitlines()]
    wanted = ["/wA=", [1.0, None], {"deep": {"inf": None}}, "1.50", "2026-01-02"]
    assert [line["odd"] for line in lines] == wanted


def test_what_is_no_regular_file_is_not_replaced(folder: Path) -> None:
    os.mkfifo(folder / "v.jsonl")
    with pytest.raises(InvalidRequestError, match="is there and no regular file"):
        open_output("v.jsonl")
    assert [path.name for path in folder.iterdir()] == ["v.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_when_every_document_failed_there_is_only_the_list(folder: Path, name: str) -> None:
    with open_output(name) as out:
        put_failed(out, "b", "bad")
    assert [path.name for path in folder.iterdir()] == [f"{name}.errors.jsonl"]


def test_vectors_of_two_widths_are_refused(folder: Path) -> None:
    out = open_output("v.npy")
    put(out, "a", [1.0])
    put(out, "b", [1.0, 2.0])
    with pytest.raises(ImpetusError, match="of 1 and of 2 dimensions"), out:
        pass
    assert list(folder.iterdir()) == []


def test_what_would_fail_at_the_end_is_told_at_the_start(folder: Path) -> None:
    (folder / "sub.npy").mkdir()
    (folder / "link.npy").symlink_to("gone/v.npy")
    for name, sentence in {
        "v.csv": r"must end in one of \.parquet, \.jsonl, \.npy, \.arrow, \.lance",
        "v": "must end in one of",
        "no/v.npy": "there is no such folder",
        "link.npy": "/gone': there is no such folder",
        "sub.npy": "is a folder",
    }.items():
        with pytest.raises(InvalidRequestError, match=sentence):
            open_output(name)
    assert sorted(path.name for path in folder.iterdir()) == ["link.npy", "sub.npy"]


def test_a_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("pyarrow.parquet", "v.parquet"), ("numpy", "v.npy")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(MissingExtraError, match=r"impetus-batch\[files\]"):
            open_output(name)
    assert list(folder.iterdir()) == []
