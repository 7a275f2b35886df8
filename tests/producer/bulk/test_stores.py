"""Databases as outputs, each the real one; and files as the libraries read them that people use."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pytest

from impetus_producer.documents import Document
from impetus_producer.errors import ImpetusError, InvalidRequestError
from impetus_producer.reading.source import ReadingOptions, open_source
from impetus_producer.writing import output
from impetus_producer.writing.output import open_output
from impetus_producer.writing.rows import Layout, Precision
from impetus_producer.writing.stores.places import STORE_ENDINGS, store_place

from .test_outputs import put, read_back

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 16


def vectors_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.fixture(params=["lance", "sqlite-vec", "pgvector"])
def store(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Callable[[], dict[str, tuple[Any, ...]]]]:
    """The name of an output, and what reads from it by key: (id, row, lang, vector)."""
    if request.param == "lance":
        return "db/docs.lance", read_lance
    if request.param == "sqlite-vec":
        return "docs.sqlite#docs", read_sqlite
    url: str = request.getfixturevalue("postgres")
    ask_postgres(url, "DROP TABLE IF EXISTS docs")
    return f"{url}&table=docs", lambda: read_postgres(url)


def read_lance() -> dict[str, tuple[Any, ...]]:
    import lancedb

    rows = lancedb.connect("db").open_table("docs").to_arrow().to_pylist()
    return {row["key"]: (row["id"], row["row"], row["lang"], np.array(row["vector"], np.float32)) for row in rows}


def read_sqlite() -> dict[str, tuple[Any, ...]]:
    import apsw
    import sqlite_vec

    connection = apsw.Connection("docs.sqlite")
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    rows: Any = connection.execute("SELECT key, id, row, lang, vector FROM docs JOIN docs_vectors USING (key)")
    found = {key: (*row, np.array(struct.unpack(f"<{WIDTH}f", raw), np.float32)) for key, *row, raw in rows}
    connection.close()
    return found


def ask_postgres(url: str, question: str) -> list[Any]:
    import asyncpg

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(map(tuple, await connection.fetch(question)))
        finally:
            await connection.close()

    return asyncio.run(ask())


def read_postgres(url: str) -> dict[str, tuple[Any, ...]]:
    rows = ask_postgres(url, "SELECT key, id, row, lang, vector::real[] FROM docs")
    return {key: (*row, np.array(vector, np.float32)) for key, *row, vector in rows}


def test_a_store_holds_every_bit_and_a_second_run_replaces_rows_by_their_key(
    store: tuple[str, Callable[[], dict[str, tuple[Any, ...]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, read = store
    monkeypatch.setattr(output, "MOST_ROWS", 40)
    Path("db").mkdir(exist_ok=True)
    vectors = vectors_of(100)
    with open_output(name, Layout({"lang": None})) as out:
        for number, vector in enumerate(vectors):
            put(out, f"id '{number}\" 日本", vector, number + 1, "de")
        put(out, None, vectors[0], 101, None)
        # An id that occurs twice, in one batch: the last one stays.
        put(out, "twice", vectors[1], 102, "a")
        put(out, "twice", vectors[2], 103, "b")
    rows = read()
    assert len(rows) == 102
    for number, vector in enumerate(vectors):
        *about, found = rows[f"id '{number}\" 日本"]
        assert about == [f"id '{number}\" 日本", number + 1, "de"]
        np.testing.assert_array_equal(found, vector)
    assert rows["in.csv#101"][:3] == (None, 101, None)
    assert rows["twice"][1:3] == (103, "b")
    with open_output(name, Layout({"lang": None})) as out:
        put(out, "twice", vectors[3], 1, "c")
        put(out, "new", vectors[4], 2, "c")
    rows = read()
    assert len(rows) == 103
    assert rows["twice"][1:3] == (1, "c")
    np.testing.assert_array_equal(rows["twice"][3], vectors[3])
    assert not list(Path().glob("*.impetus"))


def test_the_rows_of_a_query_to_postgres_are_documents(postgres: str) -> None:
    ask_postgres(postgres, "DROP TABLE IF EXISTS posts")
    ask_postgres(postgres, "CREATE TABLE posts (id uuid DEFAULT gen_random_uuid(), body jsonb, at date)")
    rows = "SELECT jsonb_build_object('text', 'text ' || n), date '2026-01-01' + n FROM generate_series(1, 3000) n"
    ask_postgres(postgres, f"INSERT INTO posts (body, at) {rows}")
    parts = urlsplit(postgres)
    socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
    url = f"postgresql+pg8000://{parts.netloc}{parts.path}?unix_sock={socket}"
    options = ReadingOptions(
        sql=(url, "SELECT id, body, at FROM posts WHERE body->>'text' LIKE 'text%' ORDER BY at"),
        text_field="body.text",
        columns=("at",),
    )
    documents = list(open_source([], options))
    assert len(documents) == 3000
    assert isinstance(documents[0], Document)
    assert isinstance(documents[0].id, str)
    assert (documents[0].text, str(documents[0].columns[0])) == ("text 1", "2026-01-02")


def test_what_a_store_cannot_take_is_one_sentence_without_a_password(
    store: tuple[str, Callable[[], dict[str, tuple[Any, ...]]]],
) -> None:
    name, _ = store
    Path("db").mkdir(exist_ok=True)
    with open_output(name, Layout({"lang": None})) as out:
        put(out, "a", vectors_of(1)[0], 1, "de")
    out = open_output(name, Layout({"lang": None}))
    put(out, "b", np.zeros(WIDTH + 1, np.float32), 1, "de")
    with pytest.raises(ImpetusError, match="takes no rows: ") as raised, out:
        pass
    assert "\n" not in str(raised.value)
    with pytest.raises(InvalidRequestError, match=r"holds no int8 vectors: --precision is one of float32"):
        open_output(name, Layout(precision="int8"))
    with pytest.raises(InvalidRequestError, match="--rows-per-file is for files"):
        open_output(name, rows_per_file=3)


def test_halves_are_kept_as_halves(folder: Path, postgres: str) -> None:
    import lancedb

    (vector,) = vectors_of(1)
    half = vector.astype(np.float16)
    with open_output("halves.lance", Layout(precision="float16")) as out:
        put(out, "a", vector)
    (row,) = lancedb.connect(".").open_table("halves").to_arrow().to_pylist()
    np.testing.assert_array_equal(np.float16(row["vector"]), half)
    with open_output(f"{postgres}&table=halves", Layout(precision="float16")) as out:
        put(out, "a", vector)
    ((kept, kind),) = ask_postgres(postgres, "SELECT vector::real[], pg_typeof(vector)::text FROM halves")
    np.testing.assert_array_equal(np.float16(kept), half)
    assert kind == "halfvec"


def test_a_password_is_shown_nowhere_and_the_table_is_no_option_of_the_server() -> None:
    place = store_place("postgresql://me:secret@db.example:5433/search?sslmode=require&table=my/docs")
    assert place is not None
    assert (place.shown, place.table) == ("postgresql://***@db.example:5433/search", "my/docs")
    assert place.address == "postgresql://me:secret@db.example:5433/search?sslmode=require"
    assert str(place.beside) == "my_docs"
    assert store_place("out.parquet") is None


FOURTH = """
import json, pathlib
from impetus_producer.writing.stores.interface import VectorStore, matrix_of

class Lines(VectorStore):
    @staticmethod
    def require(): pass
    def open(self, schema): self.rows = {}
    def upsert(self, rows):
        self.rows |= zip(rows.column("key").to_pylist(), matrix_of(rows).tolist(), strict=True)
    def close(self):
        if hasattr(self, "rows"): pathlib.Path(self.address).write_text(json.dumps(self.rows))
"""


def test_a_fourth_store_is_three_verbs_and_an_ending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(FOURTH, names)
    monkeypatch.setitem(STORE_ENDINGS, ".lines", names["Lines"])
    vectors = vectors_of(3)
    with open_output("out.lines") as out:
        for number, vector in enumerate(vectors):
            put(out, number, vector)
    written = json.loads((folder / "out.lines").read_text())
    np.testing.assert_array_equal(np.array([written[str(number)] for number in range(3)], np.float32), vectors)


def quantized(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """By sentence-transformers' `quantize_embeddings`, as its source has it."""
    bits = np.packbits(vectors > 0).reshape(len(vectors), -1)
    return bits if precision == "ubinary" else (bits - 128).astype(np.int8)


@pytest.mark.parametrize("name", ["v.parquet", "v.arrow", "v.npy", "v.jsonl"])
@pytest.mark.parametrize("precision", ["float16", "int8", "binary", "ubinary"])
def test_smaller_numbers_are_what_they_are_said_to_be(folder: Path, name: str, precision: Precision) -> None:
    vectors = vectors_of(50)
    vectors[7] = 0
    with open_output(name, Layout(precision=precision)) as out:
        for number, vector in enumerate(vectors):
            put(out, str(number), vector)
    written, scales = read_numbers(name, precision)
    if precision == "float16":
        np.testing.assert_array_equal(written, vectors.astype(np.float16))
    elif precision == "int8":
        assert scales is not None
        assert np.abs(written).max() == 127
        error = np.abs(written.astype(np.float32) * scales[:, None] - vectors)
        assert (error <= scales[:, None] / 2 * 1.0001).all()
    else:
        np.testing.assert_array_equal(written, quantized(vectors, precision))


def read_numbers(name: str, precision: Precision) -> tuple[np.ndarray, np.ndarray | None]:
    kinds = {"float16": np.float16, "int8": np.int8, "binary": np.int8, "ubinary": np.uint8}
    if name == "v.jsonl":
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        scales = np.array([line["scale"] for line in lines], np.float32) if precision == "int8" else None
        return np.array([line["embedding"] for line in lines], kinds[precision]), scales
    if name == "v.npy":
        matrix = np.load(name)
        assert matrix.dtype == kinds[precision]
        return matrix, np.load(f"{name}.scales.npy") if precision == "int8" else None
    table = pa.parquet.read_table(name) if name == "v.parquet" else pa.ipc.open_file(name).read_all()
    column = table.column("vector").combine_chunks()
    matrix = column.flatten().to_numpy().reshape(len(column), -1)
    assert matrix.dtype == kinds[precision]
    return matrix, table.column("scale").to_numpy() if precision == "int8" else None


def test_files_are_read_to_the_bit_by_pandas_polars_and_duckdb(folder: Path) -> None:
    import duckdb
    import pandas as pd
    import polars as pl

    vectors = vectors_of(30)
    for name in ("v.parquet", "v.arrow"):
        with open_output(name) as out:
            for number, vector in enumerate(vectors):
                put(out, str(number), vector)
    np.testing.assert_array_equal(np.stack(list(pd.read_parquet("v.parquet")["vector"])), vectors)
    np.testing.assert_array_equal(pl.read_parquet("v.parquet")["vector"].to_numpy(), vectors)
    np.testing.assert_array_equal(pl.read_ipc("v.arrow")["vector"].to_numpy(), vectors)
    relation: Any = duckdb.query("SELECT vector FROM 'v.parquet' ORDER BY id::int")
    np.testing.assert_array_equal(np.array([vector for (vector,) in relation.fetchall()], np.float32), vectors)


@pytest.mark.parametrize("ending", ["parquet", "npy", "jsonl", "arrow"])
def test_a_folder_of_files_holds_all_rows_in_order_and_replaces_an_earlier_one_whole(folder: Path, ending: str) -> None:
    name = f"out.{ending}"
    vectors = vectors_of(25)
    for count in (25, 7):
        with open_output(name, rows_per_file=10) as out:
            for number, vector in enumerate(vectors[:count]):
                put(out, str(number), vector, number)
        files = sorted(path for path in Path(name).iterdir() if path.stem.isdigit())
        assert [path.name for path in files] == [f"{each:05}.{ending}" for each in range(-(-count // 10))]
        read = [read_back(path) for path in files]
        assert [each for ids, _ in read for each in ids] == [str(number) for number in range(count)]
        np.testing.assert_array_equal(np.concatenate([each for _, each in read]), vectors[:count])
    assert [path.name for path in folder.iterdir()] == [name]
    (Path(name) / "mine.txt").write_text("mine")
    with pytest.raises(InvalidRequestError, match="no folder of an earlier run"):
        open_output(name, rows_per_file=10)
