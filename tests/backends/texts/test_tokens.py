"""Texts become the token rows of sentence-transformers, and a long text costs no more than the model reads of it."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from impetus_backends.embedding.encoder import PROMPT
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokenizer import read_tokenizer
from impetus_backends.embedding.texts.tokens import InputType, TextEncoder
from impetus_backends.errors import ModelError, RequestError
from tests.backends.copies import changed
from tests.recordings import recorded

from ..conftest import FAMILIES, Recorded, small_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.models import ModelFiles

MODELS = ("minilm", "nomic-moe", "deberta", "bge", "e5", "roberta", "distilbert", *FAMILIES)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, minilm: ModelFiles) -> tuple[str, Path]:
    name: str = request.param
    return name, minilm.folder if name == "minilm" else small_model(name)


@pytest.mark.parametrize(
    ("model", "pooling", "loads"), [("qwen2", "mean", True), ("qwen2", "cls", False), ("bge", "mean", False)]
)
def test_marks_at_the_ends_are_missed_where_a_model_is_to_look_at_them(
    model: str, pooling: str, loads: bool, tmp_path: Path
) -> None:
    folder = changed(small_model(model), tmp_path / "model", "1_Pooling/config.json", pooling_mode=pooling)
    stored = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(stored | {"post_processor": None}))
    change = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(change if model == "bge" else {}))
    if loads:
        assert TextEncoder.load(folder).encode([""])[0].ids.tolist() == [PROMPT]
        return
    with pytest.raises(ModelError, match="marks neither where a text begins nor where it ends"):
        TextEncoder.load(folder)


class CountingTokenizer:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.characters = 0

    def to_str(self) -> str:
        return str(self._tokenizer.to_str())

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts)


def test_token_rows_are_those_of_sentence_transformers(
    model: tuple[str, Path], texts: list[str], recorded: dict[str, Recorded]
) -> None:
    name, folder = model
    encoded = TextEncoder.load(folder).encode(texts)
    for text, ours, theirs in zip(texts, encoded, recorded[name].rows, strict=True):
        assert ours.ids.dtype == np.int32
        np.testing.assert_array_equal(ours.ids, theirs, err_msg=repr(text[:80]))


def pieces(seed: int) -> str:
    """A long text made of whatever may lie across a cut."""
    choose = random.Random(seed)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: " " * choose.choice((1, 1, 1, 2, 7)),
        lambda: "".join(choose.choices("abcdefgh'", k=choose.randint(1, 12))),
        lambda: "q" * choose.randint(90, 110),
        lambda: choose.choice(("[MASK]", "[SEP]", "<mask>", "<pad>", "</s>", "don't", "it's")),
        lambda: "".join(choose.choices("敏捷的棕色狐狸", k=choose.randint(1, 9))),
        lambda: choose.choice(("🦊", "👩‍👩‍👧‍👦", "e\u0301", "\u0301", "ﬁ", "İ", "\u00b4", "\u200b", "\u0000")),
        lambda: choose.choice((".", ",", "--", "\n", "\t\n ", "\u3000", "3.14")),
    )
    spaces = choose.random() < 0.7
    return "".join(choose.choice(kinds if spaces else kinds[1:6])() for _ in range(1500))


def test_a_prefix_gives_exactly_the_row_of_the_whole_text(model: tuple[str, Path]) -> None:
    config = read_config(model[1])
    tokenizer = CountingTokenizer(config.transformer)
    encoders = {
        max_tokens: TextEncoder(
            tokenizer, replace(config.text, max_tokens=max_tokens, prompts=(), default_prompt_name=None)
        )
        for max_tokens in (5, 24, config.text.max_tokens)
    }
    for seed in range(8 if model[0] in FAMILIES else 24):
        text = pieces(seed)
        whole = tokenizer.encode(text).ids
        for max_tokens, encoder in encoders.items():
            (row,) = encoder.encode([text])
            # Each of these tokenizers puts one token before a text and one after it.
            assert row.ids.tolist() == [*whole[: max_tokens - 1], whole[-1]], f"seed {seed}"
            assert row.lost == len(whole) - max_tokens or (len(text) > 16 * max_tokens and row.lost > 0), f"seed {seed}"


@pytest.mark.parametrize("text", ["plain words " * 400_000, "敏捷的棕色狐狸" * 700_000, "no.space," * 500_000])
def test_a_text_of_megabytes_costs_only_what_the_model_reads(minilm: ModelFiles, text: str) -> None:
    counting = CountingTokenizer(minilm.folder)
    (row,) = TextEncoder(counting, read_config(minilm.folder).text).encode([text])
    # What is lost is told from what was read: a text of one pattern has as many tokens everywhere.
    beginning = counting.encode(text[:30_000]).ids
    assert row.lost == pytest.approx(len(beginning) / 30_000 * len(text), rel=0.05)
    counting.characters = 0
    (row,) = TextEncoder(counting, read_config(minilm.folder).text).encode([text])
    assert len(row.ids) == 256
    assert counting.characters < 20_000


ENDLESS = {
    "a letter": "x" * 1_000_000,
    "accents": "e\u0301É" * 200_000,
    "another script": "быстрая" * 100_000,
    "emoji": "🦊" * 300_000,
    "families": "👩‍👩‍👧‍👦" * 60_000,
    "spaces": " " * 1_000_000,
    "lines": "\r\n\t" * 300_000,
    "what is dropped": "\x00\x01\ufffd" * 300_000,
    "words of megabytes": ("y" * 400_000 + " and ") * 3,
    "a word in two": "z" * 300_000 + "\x00" * 300_000 + "z" * 300_000,
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_has_the_tokens_that_it_always_had_and_costs_little(minilm: ModelFiles, text: str) -> None:
    counting = CountingTokenizer(minilm.folder)
    encoder = TextEncoder(counting, read_config(minilm.folder).text)
    (row,) = encoder.encode([text])
    assert counting.characters < 20_000
    whole = counting.encode(text).ids
    assert row.ids.tolist() == whole
    assert not row.truncated


def test_a_long_word_in_which_a_word_of_its_own_may_stand_is_read_to_its_end(minilm: ModelFiles) -> None:
    tokenizer = Tokenizer.from_file(str(minilm.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_tokens(["magic"])
    text = "x" * 5000 + "magic" + "x" * 5000
    (row,) = TextEncoder(tokenizer, read_config(minilm.folder).text).encode([text])
    assert row.ids.tolist() == tokenizer.encode(text).ids
    assert len(row.ids) == 5


@pytest.mark.parametrize("name", ["e5", "roberta", *FAMILIES])
def test_a_text_without_words_has_the_row_of_the_whole_text(name: str) -> None:
    config = read_config(small_model(name))
    tokenizer = CountingTokenizer(config.transformer)
    encoder = TextEncoder(tokenizer, replace(config.text, max_tokens=24, prompts=()))
    choose = random.Random(1)
    for letters in ("x", "ab", "敏捷的棕色狐狸", "abcdefghijklmnopqrstuvwxyz"):
        for text in ("".join(choose.choices(letters, k=20_001)), letters * 3_001):
            whole = tokenizer.encode(text).ids
            (row,) = encoder.encode([text])
            assert row.ids.tolist() == ([*whole[:23], whole[-1]] if len(whole) > 24 else whole), text[:20]


def test_a_text_of_exactly_the_maximum_is_not_truncated(minilm: ModelFiles) -> None:
    encoder = TextEncoder.load(minilm.folder)
    fits, beyond = encoder.encode(["a " * 254, "a " * 255])
    assert (len(fits.ids), fits.truncated) == (256, False)
    assert (len(beyond.ids), beyond.truncated) == (256, True)


def test_prompts_come_from_the_files_by_input_type() -> None:
    def row(name: str, text: str, input_type: InputType = None) -> list[int]:
        encoder = TextEncoder.load(small_model(name))
        ids: list[int] = encoder.encode([text], prompt=encoder.prompt(input_type))[0].ids.tolist()
        return ids

    prefixed = row("bge", "Represent this sentence for searching relevant passages: fox")
    assert row("bge", "fox", input_type="query") == prefixed
    assert row("bge", "fox", input_type="document") == row("bge", "fox")
    assert row("e5", "fox", input_type="document") == row("e5", "passage: fox")
    # A default prompt is for texts of no stated type; one without a prompt of its own gets none.
    assert row("distilbert", "fox") == row("distilbert", "text: fox", input_type="query")


def test_a_text_that_is_not_unicode_is_refused_by_its_number(minilm: ModelFiles) -> None:
    encoder = TextEncoder.load(minilm.folder)
    for text in ("half \ud83e", "long \ud83e" * 5000):
        with pytest.raises(RequestError, match="text 1 is not valid Unicode"):
            encoder.encode(["fine", text, "fine"])


def test_no_texts_make_no_rows(minilm: ModelFiles) -> None:
    assert TextEncoder.load(minilm.folder).encode([]) == []


CONTRADICTIONS = recorded("tokenizers")
CASES: dict[str, tuple[str, dict[str, Any]]] = json.loads(str(CONTRADICTIONS["cases"]))


@pytest.mark.parametrize("case", CASES)
def test_what_the_configuration_of_a_tokenizer_says_is_done_as_transformers_does_it(
    case: str, texts: list[str], tmp_path: Path
) -> None:
    model, keys = CASES[case]
    folder = changed(small_model(model), tmp_path / "model", "tokenizer_config.json", **keys)
    # The small DistilBERT's asks for lower case, which is done after all this.
    (folder / "sentence_bert_config.json").unlink()
    config = read_config(folder)
    encoder = TextEncoder(read_tokenizer(config), replace(config.text, prompts=(), default_prompt_name=None))
    expected = np.split(CONTRADICTIONS[f"{case}/ids"], np.cumsum(CONTRADICTIONS[f"{case}/lengths"])[:-1])
    for text, ours, theirs in zip(texts, encoder.encode(texts), expected, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs, err_msg=repr(text[:80]))


def test_the_cases_differ_from_the_tokenizer_file_alone(texts: list[str]) -> None:
    """But for the class that does as the file says: else the test above would show nothing."""
    for case, (model, _) in CASES.items():
        plain = Tokenizer.from_file(str(small_model(model) / "tokenizer.json"))
        plain.enable_truncation(40)
        rows = np.concatenate([plain.encode(text).ids for text in texts])
        assert np.array_equal(rows, CONTRADICTIONS[f"{case}/ids"]) == (case == "ignored"), case


def test_a_tokenizer_class_of_another_kind_than_the_file_is_refused(tmp_path: Path) -> None:
    for model, named, made in (("bge", "RobertaTokenizer", "BPE"), ("roberta", "BertTokenizer", "WordPiece")):
        with pytest.raises(ModelError, match=rf"makes a {made} tokenizer of tokenizer\.json|cannot be read"):
            TextEncoder.load(
                changed(small_model(model), tmp_path / model, "tokenizer_config.json", tokenizer_class=named)
            )


def test_a_tokenizer_of_the_models_own_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="auto_map names code of the model's own"):
        TextEncoder.load(
            changed(
                small_model("bge"),
                tmp_path / "model",
                "tokenizer_config.json",
                auto_map={"AutoTokenizer": ["mine.Mine", None]},
            )
        )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = changed(small_model("bge"), tmp_path / "model", "tokenizer_config.json", tokenizer_class="BertTokenizer")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer: none of tokenizer\.json, vocab\.txt"):
        TextEncoder.load(folder)


@pytest.mark.parametrize("rows", [5, 200, 239])
def test_a_tokenizer_of_another_size_than_the_table_is_refused(rows: int, tmp_path: Path) -> None:
    folder = changed(small_model("bge"), tmp_path / "model", "tokenizer_config.json")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)[:rows]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 238 if rows == 239 else 240}))
    changed_class = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed_class))
    with pytest.raises(ModelError, match=r"makes ids below \d+ and the model's table has 2\d\d rows"):
        TextEncoder.load(folder)


def test_a_tokenizer_that_knows_no_word_is_refused(tmp_path: Path) -> None:
    folder = changed(small_model("bge"), tmp_path / "model", "tokenizer_config.json", tokenizer_class="BertTokenizer")
    (folder / "tokenizer.json").unlink()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"[unused{number}]" for number in range(235))]))
    with pytest.raises(ModelError, match="takes every word for the same one"):
        TextEncoder.load(folder)


def test_a_vocabulary_alone_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = changed(
        small_model("bge"),
        tmp_path / "model",
        "tokenizer_config.json",
        tokenizer_class="BertTokenizer",
        do_lower_case=True,
    )
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    expected = TextEncoder.load(folder).encode(["The quick brown fox"])[0].ids.tolist()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)))
    assert TextEncoder.load(folder).encode(["The quick brown fox"])[0].ids.tolist() == expected


def test_a_transformers_that_was_never_tried_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.10.2")
    with pytest.raises(ModelError, match=r"transformers 5\.10\.2 .* pip install 'transformers>=5\.23'"):
        TextEncoder.load(small_model("bge"))


def test_a_prompt_that_is_not_pooled_is_marked_with_the_token_before_it() -> None:
    encoder = TextEncoder.load(small_model("electra"))
    plain, prompted = encoder.encode(["fox"]), encoder.encode(["fox"], prompt=encoder.prompt("query"))
    assert max(plain[0].ids) < PROMPT
    marked = prompted[0].ids >= PROMPT
    text = prompted[0].ids[~marked]
    assert text.tolist() == plain[0].ids.tolist()[1:]
    assert marked.tolist() == [True] * (len(marked) - len(text)) + [False] * len(text)


def test_an_end_that_the_tokenizer_does_not_name_is_counted_with_the_prompt(tmp_path: Path) -> None:
    """As sentence-transformers counts: of the prompt alone the last token is left out where it is a special one."""
    unnamed = changed(small_model("bge"), tmp_path / "unnamed", "1_Pooling/config.json", include_prompt=False)
    named = changed(unnamed, tmp_path / "named", "tokenizer_config.json", sep_token="[SEP]")
    counts = [
        int(sum(TextEncoder.load(folder).encode(["fox"], prompt="the ")[0].ids >= PROMPT))
        for folder in (unnamed, named)
    ]
    assert counts[0] == counts[1] + 1


@pytest.mark.parametrize(
    ("input_type", "names"),
    [
        ("query", ("query", "search_query", "s2p_query", "web_search_query")),
        ("document", ("document", "passage", "search_document")),
    ],
)
def test_prompts_are_found_under_every_name_that_models_use(input_type: InputType, names: tuple[str, ...]) -> None:
    config = read_config(small_model("bge"))
    tokenizer = read_tokenizer(config)
    for name in names:
        encoder = TextEncoder(tokenizer, replace(config.text, prompts=((name, "of: "), ("other", "no: "))))
        (row,) = encoder.encode(["fox"], prompt=encoder.prompt(input_type))
        assert row.ids.tolist() == tokenizer.encode("of: fox").ids


def test_a_broken_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("bge"), tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        TextEncoder.load(folder)
