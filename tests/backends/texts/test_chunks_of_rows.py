"""Late chunking: of a text that was read as a whole, a vector for each chunk, the mean of its tokens' states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tokenizers import Tokenizer

from impetus_backends.embedding.architectures.encode import encode
from impetus_backends.embedding.devices.backend import ChunkBackend, EmbeddingBackend
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.reference import NumpyOps
from impetus_backends.embedding.encoder import pad
from impetus_backends.embedding.engine import open_engine
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.models import ModelFiles
from impetus_backends.protocol import Embedded, EmbeddingWork, Rejected

from ..conftest import small_model
from ..embedding.test_vectors import LEAST_COSINE, cosines, loaded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEXTS = ["The fox jumps. Über dogs!", "one two", "a third text"]
CHUNKS = [[(0, 14), (15, 25), (4, 19)], [(0, 3), (4, 7)], []]


def by_hand(folder: Path, text: str, chunks: list[tuple[int, int]]) -> list[np.ndarray]:
    """The mean of the states of the tokens whose characters a chunk has, of length 1."""
    config, tokenizer = read_config(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode(text)
    inputs = pad(config, [np.array(encoding.ids, dtype=np.int32)])
    (states,) = encode(NumpyOps(open_weights(config)), config.encoder, inputs)
    found = []
    for begin, end in chunks:
        own = [
            at
            for at, (offset, special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True))
            if not special and begin < offset[1] <= end
        ]
        mean = states[own].mean(axis=0)
        found.append(mean / np.linalg.norm(mean))
    return found


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
@pytest.mark.parametrize("name", ["e5", "mpnet"])
def test_a_chunk_s_vector_is_the_mean_of_its_tokens_in_the_whole_text(name: str, device: str) -> None:
    folder = small_model(name)
    rows = TextEncoder.load(folder).encode_chunks(list(zip(TEXTS, CHUNKS, strict=True)))
    backend = loaded(device, folder)
    assert isinstance(backend, ChunkBackend)
    vectors = backend.embed_chunks([row.ids for row in rows], [row.chunks for row in rows])
    whole = backend.embed([rows[2].ids])
    expected = [vector for text, chunks in zip(TEXTS, CHUNKS, strict=True) for vector in by_hand(folder, text, chunks)]
    assert cosines(vectors, np.stack([*expected, whole[0]])).min() >= LEAST_COSINE[backend.precision]
    # The context counts: alone the same words come to something else.
    alone = backend.embed([TextEncoder.load(folder).encode([TEXTS[0][15:25]])[0].ids])
    assert cosines(vectors[1:2], alone)[0] < 0.99999


def test_a_text_that_is_cut_has_no_chunks() -> None:
    encoder = TextEncoder.load(small_model("e5"))
    (row,) = encoder.encode_chunks([("word " * encoder.max_tokens, [(0, 4)])])
    assert row.lost
    assert not row.chunks


def test_the_prompt_is_read_and_is_of_no_chunk() -> None:
    encoder = TextEncoder.load(small_model("e5"))
    (plain,) = encoder.encode_chunks([("one two", [(0, 3)])])
    (prompted,) = encoder.encode_chunks([("one two", [(0, 3)])], prompt=encoder.prompt("query"))
    assert len(prompted.ids) > len(plain.ids)
    (begin, end), (prompted_begin, prompted_end) = plain.chunks[0], prompted.chunks[0]
    np.testing.assert_array_equal(prompted.ids[prompted_begin:prompted_end], plain.ids[begin:end])


class OneVectorARow:
    """A backend as those of packages are."""

    name, device, precision = "bare", "cpu", "fp32"

    def load(self) -> None:
        pass

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "device", "why"), [("bge", None, "pools by cls"), ("e5", OneVectorARow(), "the backend bare makes one")]
)
def test_what_makes_no_vectors_of_chunks_says_why(name: str, device: EmbeddingBackend | None, why: str) -> None:
    folder = small_model(name)
    backend = device or make_backend("numpy", folder)
    engine = open_engine(backend, ModelFiles(name, folder, (name,)), check=False)
    assert why in str(engine.info.refuses_chunks)
    engine.admit(EmbeddingWork(1, [np.array([2, 5, 3], dtype=np.int32)], chunks=[[(1, 2)]]))
    (event,) = engine.step()
    assert isinstance(event, Rejected)
    assert event.permanent
    assert why in event.message


def test_an_engine_hands_over_a_vector_for_each_chunk() -> None:
    folder = small_model("e5")
    engine = open_engine(make_backend("numpy", folder), ModelFiles("e5", folder, ("e5",)), check=False)
    assert engine.info.refuses_chunks is None
    engine.admit(EmbeddingWork(1, [np.array([2, 5, 6, 3], dtype=np.int32)] * 2, chunks=[[(1, 2), (2, 3)], []]))
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert len(event.vectors) == 3
