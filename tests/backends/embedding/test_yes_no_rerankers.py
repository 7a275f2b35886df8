"""Language models that are asked score pairs as CrossEncoder and the model card of Qwen3-Reranker do."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.dispatcher import open_engine
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.folder.reranker import read_reranker
from impetus_backends.embedding.folder.weights import Weights, fingerprint
from impetus_backends.embedding.modules import Logit
from impetus_backends.embedding.texts.pairs import load_pairs
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import ModelError, RequestError
from impetus_backends.protocol import Embedded, EmbeddingWork
from impetus_backends.tokenizing import import_transformers
from tests.backends.copies import changed
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend

FOLDER = DATA / "rerankers" / "qwen3"
SCORES = {"qwen3": "scores", "qwen2": "qwen2/scores"}
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}


def rows_of(folder: Path, every: int = 3) -> list[np.ndarray]:
    """Of pairs of all queries and texts, in the order in which they were recorded."""
    texts, encoder = recorded_texts(), load_pairs(folder)
    return [row.ids for query in recorded("rerankers")["queries"] for row in encoder.encode(str(query), texts)][::every]


def loaded(device: str, folder: Path) -> EmbeddingBackend:
    backend = make_backend(device, read_reranker(folder))
    backend.load()
    return backend


def as_published(folder: Path) -> Path:
    """The layout without sentence-transformers' files."""
    shutil.copytree(FOLDER, folder)
    shutil.rmtree(folder / "1_LogitScore")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
@pytest.mark.parametrize("family", SCORES)
def test_scores_are_those_of_cross_encoder_with_strangers_padded_and_alone(family: str, device: str) -> None:
    folder, expected = DATA / "rerankers" / family, recorded("yes_no")[SCORES[family]][::3]
    backend, rows = loaded(device, folder), rows_of(folder)
    assert np.ptp(expected) > 1
    assert max(map(len, rows)) == read_reranker(folder).text.max_tokens, "some of them are cut"
    assert np.abs(backend.embed(rows)[:, 0] - expected).max() < TOLERANCE[backend.precision]
    for index in range(0, len(rows), 8):
        assert abs(backend.embed([rows[index]])[0, 0] - expected[index]) < TOLERANCE[backend.precision]


def test_as_it_is_published_a_model_is_asked_as_its_card_says_and_results_tell_so(tmp_path: Path) -> None:
    folder = as_published(tmp_path / "Qwen3-Reranker-0.6B")
    engine = open_engine(EngineConfig("rerank", str(folder), "cpu"))
    assert engine.info.note is not None
    assert "nothing in its files says that it is a reranker" in engine.info.note
    assert open_engine(EngineConfig("rerank", str(FOLDER), "cpu")).info.note is None
    engine.admit(EmbeddingWork(1, rows_of(folder, 5)))
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert np.abs(event.vectors[:, 0] - recorded("yes_no")["card"][::5]).max() < 1e-4
    assert fingerprint(read_reranker(folder)) != fingerprint(read_reranker(FOLDER))


def test_one_logit_alone_is_a_score_and_weights_of_their_own_are_its_where_nothing_is_tied(tmp_path: Path) -> None:
    config = read_reranker(changed(FOLDER, tmp_path / "one", "1_LogitScore/config.json", false_token_id=None))
    (step,) = config.steps
    assert isinstance(step, Logit)
    weights = Weights.of(config)
    assert weights["logit.weight"].tolist() == weights["embed_tokens.weight"][[step.yes]].tolist()
    with pytest.raises(ModelError, match=r"have no tensor lm_head\.weight"):
        loaded("numpy", changed(FOLDER, tmp_path / "untied", tie_word_embeddings=False))
    own = load_file(config.transformer / "model.safetensors")
    own["lm_head.weight"] = own["model.embed_tokens.weight"] * 2
    save_file(own, config.transformer / "model.safetensors")
    assert (Weights.of(config)["logit.weight"] == 2 * weights["logit.weight"]).all(), "it is tied only in words"


def test_a_document_is_cut_and_what_follows_it_stays() -> None:
    encoder = load_pairs(FOLDER)
    rows = encoder.encode("fox", ["the lazy dog", "ordinary words " * 40_000, ""])
    assert [row.truncated for row in rows] == [False, True, False]
    assert len(rows[1].ids) == encoder.max_tokens
    assert rows[1].lost > 40_000
    tail = encoder._tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n").ids
    assert all(row.ids[-len(tail) :].tolist() == tail for row in rows)
    whole, (cut,) = rows[0], encoder.encode("fox", ["the lazy dog"], max_document_tokens=2)
    assert 0 < cut.lost == len(whole.ids) - len(cut.ids)
    # The space between has no token of its own where a document follows.
    assert len(cut.ids) == len(rows[2].ids) - 1 + 2
    assert cut.ids[: -len(tail)].tolist() == whole.ids[: len(cut.ids) - len(tail)].tolist()
    with pytest.raises(RequestError, match="text 2 is not valid Unicode"):
        encoder.encode("fox", ["a", "\ud800"])


@pytest.mark.parametrize(
    ("file", "keys", "sentence"),
    [
        ("1_LogitScore/config.json", {"true_token_id": 420}, "420 is no token of a vocabulary of 420"),
        ("1_LogitScore/config.json", {"true_token_id": None}, "None is no token"),
        ("1_LogitScore/config.json", {"module_input_name": "logits"}, "module_input_name is not supported"),
        ("1_LogitScore/config.json", {"surprise": 1}, "surprise is not known"),
        ("sentence_bert_config.json", {"modality_config": {}}, "does not say that pairs are put as messages"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("config.json", {"architectures": ["Qwen3ForSequenceClassification"]}, "LogitScore is for a …ForCausalLM"),
        ("config.json", {"model_type": "gemma3_text"}, "'gemma3_text' of a …ForCausalLM .* qwen2, llama, mistral with"),
    ],
)
def test_a_model_that_would_be_scored_wrongly_is_refused(
    file: str, keys: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = changed(FOLDER, tmp_path / "model", file, **keys)
    with pytest.raises(ModelError, match=sentence):
        loaded("numpy", folder)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "the chat template cannot put a query and a document"),
        ("{% for each in messages %}{{ each.content | trim }}{% endfor %}", "each once and as it is"),
        ("{{ messages[-1].content }}{{ messages[-2].content }}", "each once and as it is"),
        ("{{ messages[1].content }}{{ messages[2].content }}{{ messages[2].content }}", "each once and as it is"),
        (
            "{{ messages[1].content }}{{ messages[2].content }}{% if not messages[2].content %}no{% endif %}",
            "each once and as it is",
        ),
        ("{{ messages[1].content }}{{ messages[2].content }}{{ messages[2].content | length }}", "once and as it is"),
        ("{{ nothing.of.the.kind }}", "the chat template cannot put"),
        ("{{ messages[1].content }}{{ messages[2].content }}{{ strftime_now('%Y') }}", "tells what time it is"),
    ],
)
def test_a_template_that_puts_no_pair_is_refused(template: str | None, sentence: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "model")
    file = tmp_path / "model" / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    with pytest.raises(ModelError, match=sentence):
        load_pairs(tmp_path / "model")


def test_what_a_tokenizer_puts_after_texts_is_not_put_after_questions(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    stored = json.loads((folder / "tokenizer.json").read_text())
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    names = {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, end],
        "special_tokens": names,
    }
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    documents = ["the lazy dog", "ordinary words " * 40_000, ""]
    found, expected = (load_pairs(each).encode("fox", documents) for each in (folder, FOLDER))
    assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]


def test_what_comes_after_a_document_may_share_a_token_with_it(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    put = "{{ messages[1].content }}\nfor {{ messages[2].content }}{{ ' \n' }}Is it relevant?"
    (folder / "chat_template.jinja").write_text(put)
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    documents = ["the fox", "ends in a full stop.", "in spaces  ", "in a line\n", "", "words " * 400]
    rows, encoder = load_pairs(folder).encode("a fox", documents), load_pairs(folder)
    for document, row in zip(documents[:-1], rows, strict=False):
        assert row.ids.tolist() == tokenizer.encode(f"a fox\nfor {document} \nIs it relevant?").ids
    end = tokenizer.encode(" \nIs it relevant?").ids
    assert (len(rows[-1].ids), rows[-1].ids[-len(end) :].tolist()) == (encoder.max_tokens, end)
    (cut,) = encoder.encode("a fox", ["the fox and more of it."], max_document_tokens=3)
    assert cut.ids.tolist()[: len(rows[4].ids) - len(end)] == rows[4].ids.tolist()[: -len(end)]
    assert (cut.truncated, cut.ids[-len(end) :].tolist()) == (True, end)


def test_a_vocabulary_without_yes_answers_nothing(tmp_path: Path) -> None:
    folder = as_published(tmp_path / "model")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"yes"', '"yex"'))
    with pytest.raises(ModelError, match="has no token for 'yes'"):
        read_reranker(folder)


def test_other_language_models_are_asked_where_their_files_say_how_alone(tmp_path: Path) -> None:
    other = changed(as_published(tmp_path / "own"), tmp_path / "other", model_type="qwen2")
    with pytest.raises(ModelError, match=r"'qwen2' of a …ForCausalLM .* and qwen3 without"):
        read_reranker(other)
