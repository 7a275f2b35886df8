"""Every device scores pairs as sentence-transformers' CrossEncoder does (scripts/recording)."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.dispatcher import open_engine, pair_tokenizer
from impetus_backends.embedding.devices import golden
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.distances import place_buckets
from impetus_backends.embedding.encoder import SECOND
from impetus_backends.embedding.folder.reranker import read_reranker
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.pairs import load_pairs
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import BackendUnavailableError, ModelError
from impetus_backends.protocol import Embedded, EmbeddingWork
from tests.backends.copies import changed
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend

NAMES = (
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "albert",
    "gte",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
DEVICES = ("cpu", "mlx", "numpy")
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}


def folder_of(name: str) -> Path:
    return DATA / "rerankers" / name


@cache
def rows_of(name: str) -> list[np.ndarray]:
    """Of every query with every text, as they were recorded."""
    texts = recorded_texts()
    encoder = load_pairs(folder_of(name))
    return [row.ids for query in recorded("rerankers")["queries"] for row in encoder.encode(str(query), texts)]


def loaded(device: str, name: str) -> EmbeddingBackend:
    backend = make_backend(device, read_reranker(folder_of(name)))
    backend.load()
    return backend


@pytest.mark.parametrize("name", NAMES)
def test_pairs_become_the_rows_that_transformers_makes_cut_from_the_longer_text(name: str) -> None:
    made = rows_of(name)
    assert [len(row) for row in made] == recorded("rerankers")[f"{name}/lengths"].tolist()
    assert (np.concatenate(made) & (SECOND - 1)).tolist() == recorded("rerankers")[f"{name}/ids"].tolist()
    if read_reranker(folder_of(name)).encoder.types:
        assert (np.concatenate(made) >= SECOND).astype(int).tolist() == recorded("rerankers")[f"{name}/types"].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_cross_encoder_with_strangers_padded_and_alone(name: str, device: str) -> None:
    backend, rows, expected = loaded(device, name), rows_of(name), recorded("rerankers")[f"{name}/scores"]
    together = backend.embed(rows)
    assert together.shape == (len(rows), 1)
    assert np.abs(together[:, 0] - expected).max() < TOLERANCE[backend.precision]
    for index in range(0, len(rows), 10):
        assert abs(backend.embed([rows[index]])[0, 0] - expected[index]) < TOLERANCE[backend.precision]


def test_gtes_reranker_is_read_as_it_was_published(tmp_path: Path) -> None:
    folder = changed(
        folder_of("gte"),
        tmp_path / "model",
        architectures=["NewForSequenceClassification"],
        auto_map={"AutoModelForSequenceClassification": "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification"},
        model_type="new",
        rope_theta=160_000,
        rope_parameters=None,
    )
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()  # which is still mapped
    save_file({name.replace("gte.", "new."): each for name, each in stored.items()}, folder / "model.safetensors")
    assert read_reranker(folder).encoder == read_reranker(folder_of("gte")).encoder
    backend, rows = make_backend("numpy", read_reranker(folder)), rows_of("gte")
    backend.load()
    assert np.abs(backend.embed(rows)[:, 0] - recorded("rerankers")["gte/scores"]).max() < TOLERANCE[backend.precision]


def test_recorded_scores_tell_one_document_from_another() -> None:
    for name in NAMES:
        assert np.ptp(recorded("rerankers")[f"{name}/scores"]) > 0.02, "else any score would be near enough"


def test_a_tokens_text_changes_the_score_where_the_model_tells_the_two_apart() -> None:
    backend = loaded("numpy", "bert")
    (row,) = load_pairs(folder_of("bert")).encode("fox", ["the lazy dog"])
    assert abs(backend.embed([row.ids]) - backend.embed([row.ids & (SECOND - 1)])).max() > 1e-3


def test_a_document_is_cut_to_the_tokens_that_are_asked_for() -> None:
    encoder = load_pairs(folder_of("bert"))
    whole, cut = (encoder.encode("fox", ["the lazy dog"], max_document_tokens=most)[0] for most in (None, 2))
    kept = [token for token in cut.ids.tolist() if token >= SECOND]
    assert kept == [token for token in whole.ids.tolist() if token >= SECOND][:2] + kept[-1:]
    assert (whole.truncated, cut.truncated) == (False, True)


def test_a_document_of_megabytes_takes_no_longer_than_what_is_read_of_it() -> None:
    encoder = load_pairs(folder_of("xlm-roberta"))
    seen: list[int] = []

    class Counting:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            seen.extend(map(len, texts))
            return encoder._tokenizer.encode_batch_fast(texts)

        def encode(self, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return encoder._tokenizer.encode(text, **options)

    encoder._texts._tokenizer = Counting()
    (row,) = encoder.encode("fox", ["ordinary words " * 200_000])
    assert row.truncated
    assert len(row.ids) == encoder.max_tokens
    assert sum(seen) < 10_000


def test_an_engine_serves_a_reranker_and_says_how_near_it_is() -> None:
    engine = open_engine(EngineConfig("rerank", str(folder_of("bert")), "cpu"))
    assert (engine.info.kind, engine.info.dimensions) == ("rerank", 1)
    assert "golden check passed, logits" in engine.info.reasons[-1]
    rows = [row.ids for row in pair_tokenizer(engine.info).encode("fox", ["a", "the lazy dog"])]
    engine.admit(EmbeddingWork(1, rows))
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert event.vectors.shape == (2, 1)


def test_a_device_that_ignores_padding_is_caught_by_the_golden_check() -> None:
    config = read_reranker(folder_of("bert"))

    class Blind:
        name, device, precision = "blind", "cpu", "fp32"

        def load(self) -> None:
            """It has nothing of its own."""

        def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
            longest = max(map(len, rows))
            return right.embed([np.pad(row, (0, longest - len(row)), constant_values=5) for row in rows])

    right = loaded("numpy", "bert")
    golden.check_scores(right, config, folder_of("bert"))
    with pytest.raises(BackendUnavailableError, match="logits differ by"):
        golden.check_scores(Blind(), config, folder_of("bert"))


def test_what_scores_are_is_read_from_whichever_file_says_it(tmp_path: Path) -> None:
    assert [read_reranker(folder_of(name)).scores for name in ("bert", "xlm-roberta", "roberta", "distilbert")] == [
        "", "sigmoid", "", "",
    ]  # fmt: skip
    own = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    folder = changed(folder_of("roberta"), tmp_path / "both", "config_sentence_transformers.json", **own)
    assert read_reranker(folder).scores == "sigmoid"
    assert fingerprint(read_reranker(folder)) != fingerprint(read_reranker(folder_of("roberta")))


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Sigmoid"}),
        ("sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True}),
    ],
)
def test_without_a_list_of_modules_its_files_are_not_read_as_cross_encoder_reads_none(
    file: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    bare = read_reranker(folder_of("bert"))
    beside = read_reranker(changed(folder_of("bert"), tmp_path / "model", file, **keys))
    assert (beside.scores, beside.text) == (bare.scores, bare.text)


@pytest.mark.parametrize(
    ("file", "keys", "sentence"),
    [
        ("config.json", {"architectures": ["BertModel"]}, "is of BertModel, and a reranker is a"),
        ("config.json", {"architectures": None}, "is of nothing that it names"),
        ("config.json", {"architectures": {"0": "BertForSequenceClassification"}}, "is no list of names"),
        ("config.json", {"hidden_act": ["gelu"]}, "states a value of a kind that is not read there"),
        ("config.json", {"model_type": "t5"}, "rerankers of model_type 't5' are not supported"),
        ("config.json", {"id2label": {"0": "no", "1": "yes"}}, "has 2 labels"),
        ("config.json", {"id2label": None}, "has 2 labels"),
        (
            "config.json",
            {"sentence_transformers": {"activation_fn": "evil.Function"}},
            "scores made by 'evil",
        ),
        ("config.json", {"type_vocab_size": 3}, "embeddings.token_type_embeddings.weight is 2 x 16, and 3 x 16"),
        ("config_sentence_transformers.json", {"prompts": {"query": "q: "}}, "prompts are not supported for rerankers"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type 'SparseEncoder'"),
        ("config_sentence_transformers.json", {"surprise": 1}, "surprise is not known"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
        ("adapter_config.json", {}, "PEFT adapter"),
    ],
)
def test_a_model_that_would_be_scored_wrongly_is_refused(
    file: str, keys: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    # What sentence-transformers states of the whole is read where there is a modules.json.
    model = "bert" if file in ("config.json", "adapter_config.json") else "roberta"
    folder = changed(folder_of(model), tmp_path / "model", file, **keys)
    with pytest.raises(ModelError, match=sentence):
        make_backend("numpy", read_reranker(folder)).load()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"pos_att_type": ["c2p"]}, r"pos_att_type \['c2p'\] is not supported"),
        ({"pos_att_type": None}, "pos_att_type None is not supported"),
        ({"share_att_key": False}, "share_att_key False"),
        ({"position_biased_input": True}, "position_biased_input True"),
        ({"norm_rel_ebd": "none"}, "norm_rel_ebd 'none'"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3"),
        ({"position_buckets": None}, "position_buckets is None"),
        ({"position_buckets": 4}, r"rel_embeddings\.weight is 16 x 16, and 8 x 16 is needed"),
        ({"pooler_hidden_act": "mish"}, "pooler_hidden_act 'mish'"),
    ],
)
def test_a_deberta_of_another_make_is_refused(keys: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = changed(folder_of("deberta-v2"), tmp_path / "model", **keys)
    with pytest.raises(ModelError, match=sentence):
        make_backend("numpy", read_reranker(folder)).load()


def test_a_query_whose_tokens_are_of_the_second_type_is_refused(tmp_path: Path) -> None:
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    folder = changed(folder_of("bert"), tmp_path / "model", "tokenizer_config.json", **stated)
    stored = json.loads((folder / "tokenizer.json").read_text())
    for piece in stored["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] = 1
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="gives a query token types other than 0"):
        load_pairs(folder)


def test_a_chat_template_puts_pairs_where_no_modules_say_otherwise_and_is_refused_there(tmp_path: Path) -> None:
    template = "{% for each in messages %}{{ each.role }} {{ each.content }}{% endfor %}"
    bare, whole = (
        changed(DATA / "rerankers" / name, tmp_path / name, "tokenizer_config.json", chat_template=template)
        for name in ("bert", "modernbert")
    )
    with pytest.raises(ModelError, match="has a chat template, by which sentence-transformers puts pairs"):
        load_pairs(bare)
    (row,), (expected,) = (load_pairs(each).encode("a", ["b"]) for each in (whole, DATA / "rerankers" / "modernbert"))
    assert row.ids.tolist() == expected.ids.tolist()


def test_distances_of_deberta_are_told_apart_near_and_by_their_logarithm_far() -> None:
    rows = place_buckets(512, 256, 512)
    assert rows[512 - 128 : 512 + 129].tolist() == list(range(384, 127, -1)), "one row a distance"
    assert (rows[0], rows[1024]) == (511, 0)
    assert (np.diff(rows) <= 0).all()


def test_a_model_for_embeddings_is_no_reranker_and_the_other_way_round() -> None:
    with pytest.raises(ModelError, match="supported for rerankers is one Transformer"):
        open_engine(EngineConfig("rerank", str(DATA / "models" / "bge"), "numpy"))
    with pytest.raises(ModelError, match=r"has no modules\.json"):
        open_engine(EngineConfig("embedding", str(folder_of("bert")), "numpy"))


def test_core_ml_is_refused_by_name_and_nobody_reranks_without_a_model() -> None:
    with pytest.raises(BackendUnavailableError, match="coreml-emulated runs no rerankers"):
        open_engine(EngineConfig("rerank", str(folder_of("bert")), "coreml-emulated"))
    with pytest.raises(ModelError, match="name one with --rerank-model"):
        open_engine(EngineConfig("rerank", backend="numpy"))
