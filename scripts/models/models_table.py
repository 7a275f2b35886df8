#!/usr/bin/env python3
"""Writes of docs/models.md which embedding models, sparse heads and rerankers load, and how near they are to
sentence-transformers.

Every figure is measured as the tests measure it, on the small models in tests/data whose vectors and scores were
recorded.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scripts.models.models_page import write_part

from impetus_backends.embedding.devices.backend import SparseBackend
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.evaluator import SavedPackage
from impetus_backends.embedding.devices.operations import INPUTS
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.encoder import pad
from impetus_backends.embedding.folder.config import EmbeddingConfig, read_config
from impetus_backends.embedding.folder.reranker import read_reranker
from impetus_backends.embedding.texts.pairs import load_pairs
from impetus_backends.embedding.texts.tokens import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
BACKENDS = ("numpy", "cpu", "mlx")


class Row(NamedTuple):
    """One line of the table: the folder of the small model, and what it stands for."""

    folder: str
    family: str
    examples: str
    tokens: str
    in_packages: bool = True
    """Whether Core ML and Core AI run it."""


ROWS = (
    Row("bge", "BERT", "all-MiniLM-L6-v2, bge-*-en-v1.5, e5-*-v2, mxbai-embed-large-v1, LaBSE", "512"),
    Row("distilbert", "DistilBERT", "multi-qa-distilbert, distiluse-base-multilingual", "512"),
    Row("roberta", "RoBERTa", "all-distilroberta-v1, all-roberta-large-v1", "512"),
    Row("e5", "XLM-RoBERTa", "multilingual-e5-*, bge-m3 (dense), arctic-embed-l-v2.0", "512 to 8,192"),
    Row("camembert", "CamemBERT", "sentence-camembert-base", "512"),
    Row("electra", "ELECTRA", "fine-tuned ELECTRA models", "512"),
    Row("ernie", "ERNIE", "text2vec-base-chinese-paraphrase", "512 to 2,048"),
    Row("albert", "ALBERT", "paraphrase-albert-small-v2, fine-tuned ALBERT models", "512"),
    Row("deberta", "DeBERTa (v2, v3)", "fine-tuned DeBERTa-v3 models", "512", in_packages=False),
    Row("mpnet", "MPNet", "all-mpnet-base-v2, multi-qa-mpnet-base", "512"),
    Row("jina", "Jina BERT*", "jina-embeddings-v2-small-en, v2-base-en", "8,192"),
    Row("t5", "T5 encoder", "sentence-t5-*, gtr-t5-*", "as stated"),
    Row("mt5", "mT5 encoder", "fine-tuned mT5 encoders", "as stated"),
    Row("nomic", "NomicBERT", "nomic-embed-text-v1, v1.5", "as stated"),
    Row("nomic-moe", "NomicBERT with experts*", "nomic-embed-text-v2-moe", "as stated", in_packages=False),
    Row("gte", "GTE", "gte-multilingual-base, gte-*-en-v1.5, arctic-embed-m-v2.0", "as stated"),
    Row("modernbert", "ModernBERT", "gte-modernbert-base, modernbert-embed-base, granite-embedding r2", "8,192"),
    Row("qwen3", "Qwen3", "Qwen3-Embedding-0.6B, 4B, 8B", "32,768"),
    Row("qwen2", "Qwen2", "fine-tuned Qwen2 and Qwen2.5 (not gte-Qwen2, which brings code of its own)", "as stated"),
    Row(
        "mistral",
        "Mistral",
        "e5-mistral-7b-instruct, SFR-Embedding-Mistral, Linq-Embed-Mistral, bge-en-icl",
        "as stated",
    ),
    Row("llama", "Llama", "fine-tuned Llama models", "as stated"),
    Row("eurobert", "EuroBERT", "EuroBERT-210m and larger, fine-tuned", "8,192"),
    Row("gemma", "Gemma 3", "EmbeddingGemma-300m", "2,048"),
    Row("static", "static (no transformer)", "potion-*, static-retrieval-mrl-en-v1, static-similarity-*", "8,192"),
)
REFUSED = """\
\\* transformers has no such model, and its own code was not to be had: held against its description, written out in
torch in scripts/recording/record_described_vectors.py, and against no recording of the original.

GTE's files as they were published (`model_type` `new`) are read as transformers has the same model under `gte`; for
angles of type `ntk`, which that has not, by the formula of text-embeddings-inference and vLLM.

What follows is refused with a sentence that names the file and what in it, because guessing would make wrong vectors:

- a model whose files ask for code of its own (`auto_map`) that is not one of the families in the table, and any family
  that is not there;
- weights in `pytorch_model.bin` alone, which `impetus-worker convert --from-torch FOLDER` converts;
- fp8 and all quantised weights but MLX's affine ones, by name;
- a tensor that is missing, does not have the shape that `config.json` asks for or is there under two names, and files
  that were cut off; weights that make the same vector of every text;
- a tokenizer that is missing, knows no word, is of another kind than its class, does not fit the model's table,
  is read by transformers otherwise than its tokenizer.json says, leaves out merges by chance (`dropout`), or gives a
  text token types other than 0;
- a key that is not known in `sentence_bert_config.json`, `config_sentence_transformers.json` or a module's own file;
- texts that are put as messages of a chat template (`message` in `modality_config`);
- PEFT adapters beside the weights, modules other than Pooling, Dense, LayerNorm, Dropout and Normalize (late
  interaction as ColBERT's, CNN, LSTM, WordEmbeddings, WeightedLayerPooling, Router);
- angles (RoPE) scaled otherwise than `linear`, `dynamic`, `yarn` and `llama3` (as `longrope`), or by keys that are not
  those of the type; `dynamic` with a `max_seq_length` beyond `max_position_embeddings`, where lengths decide;
- language models whose tokens see what comes after them (`is_causal: false`) within a window, other than Gemma 3;
  windows of Qwen's;
- modules after SpladePooling, and a router; heads for sparse embeddings that do not fit (see *Sparse embeddings*);
- DeBERTa with convolutions or absolute positions (as v2-xlarge), and all of it by Core ML and Core AI;
- Jina v2 by code other than `jina-bert-implementation` (base-es, base-code);
- static tables that do not fit model2vec's `mapping` and `weights`; of a static model's text 8,192 tokens count.

Poolings: cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken, and several one after the other;
`include_prompt: false`; after them Dense layers with Tanh, GELU, ReLU, SiLU or none, LayerNorm, Dropout and Normalize
in any order; `truncate_dim`.

Weights that MLX quantised (those of mlx-community; 2, 4 or 8 bits) load on every backend: MLX computes with them as
they are, the others with what MLX's `dequantize` makes of them in float32, to the bit. Where such a folder has no
`modules.json`, copy it, `1_Pooling` and `config_sentence_transformers.json` from the model that it was made of.

E5 models whose files state no prompts serve without them, and say in the note of each result that they were trained
with "query: " and "passage: ".
"""


RERANKERS = (
    Row("bert", "BERT", "ms-marco-MiniLM-*, ms-marco-TinyBERT", "512"),
    Row("distilbert", "DistilBERT", "fine-tuned DistilBERT rerankers", "512"),
    Row("roberta", "RoBERTa", "quora-roberta, stsb-roberta", "512"),
    Row("xlm-roberta", "XLM-RoBERTa", "bge-reranker-base, -large, -v2-m3; mmarco-mMiniLMv2", "512 to 8,192"),
    Row("camembert", "CamemBERT", "fine-tuned CamemBERT rerankers", "512"),
    Row("electra", "ELECTRA", "ms-marco-electra-base", "512"),
    Row("mpnet", "MPNet", "fine-tuned MPNet rerankers", "512"),
    Row("albert", "ALBERT", "fine-tuned ALBERT rerankers", "512"),
    Row("deberta-v2", "DeBERTa (v2, v3)", "mxbai-rerank-xsmall-v1, base-v1, large-v1", "512"),
    Row("modernbert", "ModernBERT", "gte-reranker-modernbert-base", "8,192"),
    Row("gte", "GTE", "gte-multilingual-reranker-base", "as stated"),
    Row("qwen3", "Qwen3, by its yes and no", "Qwen3-Reranker-0.6B, 4B, 8B", "8,192"),
    Row("qwen2", "Qwen2, by two of its tokens", "mxbai-rerank-*-v2 with LogitScore in modules.json", "8,192"),
)
RERANKERS_REFUSED = """\
A score is what `CrossEncoder.predict` returns: a sigmoid of the logit, or the logit itself where the model's files say
so (`activation_fn` in `config_sentence_transformers.json` or `config.json`). Rows are cut as transformers cuts pairs,
`longest_first`.

Qwen3-Reranker is a language model that is asked: the score is how far its logit of *yes* is above that of *no*, and
what is too long is cut off the document's end. With sentence-transformers' files (LogitScore, a chat template for a
query and a document, a prompt) it is asked as these say, and so are Qwen2, Llama and Mistral; without them Qwen3 is
asked as the model card has it, and then results carry a note, for nothing tells it from another Qwen3. Control tokens
that a document spells are read as such, as there.

Refused by name: a model without a …ForSequenceClassification head that is no …ForCausalLM of these, and any family that
is not in the table; more labels than one, whose scores have no one order; other activations than Sigmoid and Identity;
prompts of the former; templates that tell the time; DeBERTa with convolutions or absolute positions (as v2-xlarge);
modules beside the transformer and LogitScore; and Core ML, which runs none of them.
"""


SPARSE = (
    Row("bert", "SPLADE on BERT", "splade-v3, splade-cocondenser-*, Splade_PP_en_v*", "512"),
    Row("distilbert", "SPLADE on DistilBERT", "splade-v3-distilbert", "512"),
    Row("roberta", "SPLADE on RoBERTa", "granite-embedding-30m-sparse", "512"),
    Row("modernbert", "SPLADE on ModernBERT", "fine-tuned ModernBERT models", "8,192"),
    Row("bge-m3", "lexical weights on XLM-RoBERTa", "bge-m3, beside its dense vectors", "8,192"),
)
SPARSE_REFUSED = """\
A request says `output: "sparse"`; each vector is `{"indices": [...], "values": [...]}`, token ids and their weights.
SPLADE: poolings `max` and `sum`, activations `relu` and `log1p_relu`, `max_active_dims`; held against
SparseEncoder. The
lexical weights of bge-m3 are held against FlagEmbedding's formula, written out in torch in
scripts/recording/record_sparse_vectors.py, for sentence-transformers has no module for them.

Refused in a sentence: sparse vectors of a model without such a head, and dense ones of a SPLADE model;
`sparse_linear.pt` alone, which is a pickle: the error says how to convert it once; heads that need a router
(inference-free queries); Core ML and Core AI, which serve bge-m3's dense vectors alone. Late interaction (ColBERT) is
not there.
"""


def main() -> None:
    texts = json.loads((DATA / "texts.json").read_text())
    queries = len(np.load(DATA / "rerankers.npz")["queries"])
    cosine = f"least cosine to sentence-transformers over {len(texts)} texts"
    core_ml = "; Core ML's is of the saved package, evaluated in numpy as a device in float16 would"
    score = (
        "most that a score is off that of sentence-transformers' CrossEncoder, "
        f"over {len(texts)} texts with each of {queries} queries"
    )
    weight = f"most that a weight is off the recorded one, over {len(texts)} texts"
    _write("Embedding models", (*BACKENDS, "Core ML"), cosine, _embedding_models(texts), REFUSED, core_ml)
    _write("Rerankers", BACKENDS, score, _rerankers(texts), RERANKERS_REFUSED)
    _write("Sparse embeddings", BACKENDS, weight, _sparse(texts), SPARSE_REFUSED)


def _write(
    part: str,
    columns: Sequence[str],
    what: str,
    measured: Iterator[tuple[Row, list[str]]],
    refused: str,
    more: str = "",
) -> None:
    """A table of the page, a row for each family, and what it says beside it."""
    lines = [
        f"Written by scripts/models/models_table.py. Figures are the {what}, batched and padded, of a small random "
        f"model of the family in its true file layout{more}. Every row is a test.",
        "",
        f"| family | for example | {' | '.join(columns)} | tokens |",
        f"|---|---|{'---|' * len(columns)}---|",
        *(f"| {row.family} | {row.examples} | {' | '.join(figures)} | {row.tokens} |" for row, figures in measured),
    ]
    write_part(part, "\n".join([*lines, "", refused]))


def _embedding_models(texts: list[str]) -> Iterator[tuple[Row, list[str]]]:
    files = ("reference.npz", "families.npz", "described.npz")
    recorded = {name: array for file in files for name, array in np.load(DATA / file).items()}
    for row in ROWS:
        folder = DATA / "models" / row.folder
        rows = [text.ids for text in TextEncoder.load(folder).encode(texts)]
        figures = [_least(_run(name, folder, rows), recorded[f"{row.folder}/plain"]) for name in BACKENDS]
        made = _core_ml(folder, rows) if row.in_packages else None
        yield row, [*figures, "refused" if made is None else _least(made, recorded[f"{row.folder}/plain"])]


def _rerankers(texts: list[str]) -> Iterator[tuple[Row, list[str]]]:
    asked = dict(np.load(DATA / "yes_no.npz"))
    recorded = {**np.load(DATA / "rerankers.npz"), **asked, "qwen3/scores": asked["scores"]}
    for row in RERANKERS:
        folder = DATA / "rerankers" / row.folder
        encoder = load_pairs(folder)
        rows = [each.ids for query in recorded["queries"] for each in encoder.encode(str(query), texts)]
        config = read_reranker(folder)
        yield row, [_most(_run(name, config, rows)[:, 0], recorded[f"{row.folder}/scores"]) for name in BACKENDS]


def _sparse(texts: list[str]) -> Iterator[tuple[Row, list[str]]]:
    recorded = np.load(DATA / "sparse.npz")
    for row in SPARSE:
        folder = DATA / "sparse" / row.folder
        rows = [text.ids for text in TextEncoder.load(folder).encode(texts)]
        expected = recorded[f"{row.folder}/plain"]
        yield row, [_most(_weigh(name, folder, rows, expected), expected) for name in BACKENDS]


def _weigh(name: str, folder: Path, rows: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    backend = make_backend(name, folder)
    backend.load()
    assert isinstance(backend, SparseBackend)
    made = np.zeros_like(like)
    for row, vector in zip(made, backend.weigh(rows), strict=True):
        row[vector.indices] = vector.values
    return made


def _run(name: str, model: EmbeddingConfig | Path, rows: list[np.ndarray]) -> np.ndarray:
    backend = make_backend(name, model)
    backend.load()
    return backend.embed(rows)


def _core_ml(folder: Path, rows: list[np.ndarray]) -> np.ndarray:
    config = read_config(folder)
    bucket = Bucket(len(rows), config.text.max_tokens)
    batch = pad(config, rows, batch=bucket.batch, length=bucket.length)
    with tempfile.TemporaryDirectory() as made:
        package.build(config, [bucket], Path(made) / "model.mlpackage")
        run = SavedPackage(Path(made) / "model.mlpackage").function(bucket.function)
        return run({name: getattr(batch, name) for name in INPUTS})


def _most(values: np.ndarray, expected: np.ndarray) -> str:
    return f"{float(np.abs(values - expected).max()):.0e}"


def _least(vectors: np.ndarray, expected: np.ndarray) -> str:
    vectors, expected = vectors.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    has_tokens = expected.any(axis=1)  # of a text without any a static model has no direction
    cosine = float(((vectors * expected).sum(axis=1) / np.maximum(lengths, 1e-12))[has_tokens].min())
    # Cut, and not rounded: no figure is better than what was measured.
    return f"{np.floor(cosine * 1e6) / 1e6:.6f}"


if __name__ == "__main__":
    main()
