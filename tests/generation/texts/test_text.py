from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impetus_backends.generation.texts.detokenize import Decoding, Detokenizer
from impetus_backends.generation.texts.text import TextBuilder

SENTENCE = "the cat sat on the mat, and the dog sat on the cat"


class Pieces:
    """A text whose token n is its n-th piece."""

    def __init__(self, text: str, size: int) -> None:
        self._pieces = [text[at : at + size] for at in range(0, len(text), size)]
        self.text = ""

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, token: int) -> None:
        self.text += self._pieces[token]

    @property
    def settled(self) -> int:
        return len(self.text)

    def whole(self) -> str:
        return self.text


def built(text: str, size: int, stop: tuple[str, ...], marks: tuple[str, ...] = ()) -> tuple[str, bool]:
    detokenizer = Pieces(text, size)
    builder = TextBuilder(detokenizer, stop, marks)
    for token in range(len(detokenizer)):
        builder.add(token)
    return builder.finish(), builder.stopped


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), SENTENCE),
        (("never there",), SENTENCE),
        (("on the",), "the cat sat "),
        (("mat, and the dog",), "the cat sat on the "),
        (("the",), ""),
        (("cat sat on", "at"), "the c"),
        (("dog", "sat on the mat"), "the cat "),
        (("t on", "sat on"), "the cat "),
    ],
)
def test_text_ends_before_the_stop_string_however_it_is_cut_into_tokens(
    stop: tuple[str, ...], expected: str, size: int
) -> None:
    text, stopped = built(SENTENCE, size, stop)
    assert text == expected
    assert stopped == (expected != SENTENCE)
    assert not any(string in text for string in stop)


def test_tokens_after_the_stop_string_change_nothing() -> None:
    builder = TextBuilder(Pieces("one two three", 4), (" two",))
    for token in (0, 1, 2):
        builder.add(token)
    assert builder.finish() == "one"


def of_model(loaded: Any, stop: tuple[str, ...] = ()) -> TextBuilder:
    return TextBuilder(Detokenizer(Decoding(loaded.tokenizer)), stop)


@pytest.mark.system
@pytest.mark.parametrize("text", ["日本語の文章 with naïve 🙂🚀 עברית", "Zürich, 한국어\nand Łódź", "👩‍👩‍👧 family"])
def test_multi_byte_text_cut_at_any_token_is_a_whole_prefix(loaded: Any, text: str) -> None:
    tokens = loaded.tokenizer.encode(text)
    assert len(tokens) > len(text) / 2
    cut = None
    for count in range(len(tokens) + 1):
        builder = of_model(loaded)
        for token in tokens[:count]:
            builder.add(token)
        cut = builder.finish()
        assert text.startswith(cut)
        assert "\ufffd" not in cut
    assert cut == text


@pytest.mark.system
def test_a_stop_string_of_characters_that_span_several_tokens_is_found(loaded: Any) -> None:
    builder = of_model(loaded, ("語🚀",))
    for token in loaded.tokenizer.encode("before 🙂語🚀 after"):
        builder.add(token)
    assert builder.finish() == "before 🙂"


class Bytes:
    """A text whose tokens are bytes. Those at its end that are no whole character yet are not settled."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, token: int) -> None:
        self._bytes += bytes([token])

    @property
    def text(self) -> str:
        return self._bytes.decode("utf-8", "replace")

    @property
    def settled(self) -> int:
        return len(self.text.rstrip("\ufffd"))

    def whole(self) -> str:
        return self.text


def streamed(builder: TextBuilder, tokens: list[int]) -> tuple[list[str], str]:
    """What had been streamed after each token, and the whole text."""
    sent, so_far = "", []
    for token in tokens:
        builder.add(token)
        sent += builder.take()
        so_far.append(sent)
    return so_far, builder.finish()


def never_taken_back(so_far: list[str], whole: str, stop: tuple[str, ...]) -> None:
    for sent in so_far:
        assert whole.startswith(sent)
        assert not sent.endswith("\ufffd")
        sent.encode()
    assert not any(string in whole for string in stop)


STOPS = st.lists(st.text("abc ", min_size=1, max_size=5), max_size=3).map(tuple)


@given(text=st.text("abc ", max_size=40), stop=STOPS, cuts=st.lists(st.integers(1, 6), max_size=40))
@example(text="aab", stop=("ab",), cuts=[])
@example(text="abcabcabcc", stop=("abcabcc", "bca"), cuts=[2, 3])
def test_what_is_streamed_is_never_taken_back_and_holds_no_part_of_a_stop_string(
    text: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    detokenizer = Pieces(text, 1)
    if cuts:
        bounds = [sum(cuts[:at]) for at in range(len(cuts) + 1)] + [len(text)]
        detokenizer._pieces = [text[start:end] for start, end in pairwise(bounds)]
    so_far, whole = streamed(TextBuilder(detokenizer, stop), list(range(len(detokenizer))))
    never_taken_back(so_far, whole, stop)
    first = min(((text.find(each) + len(each), text.find(each)) for each in stop if each in text), default=None)
    assert whole == (text if first is None else text[: first[1]])


@given(
    data=st.one_of(st.binary(max_size=30), st.text("é語🙂a", max_size=12).map(str.encode)),
    stop=st.lists(st.sampled_from(["a", "語a", "🙂", "é語", "\ufffda", "\ufffd"]), max_size=2).map(tuple),
)
@example(data="語🙂".encode()[:-1] + b"a", stop=())
def test_broken_bytes_are_streamed_as_they_end_up_in_the_text(data: bytes, stop: tuple[str, ...]) -> None:
    so_far, whole = streamed(TextBuilder(Bytes(), stop), list(data))
    never_taken_back(so_far, whole, stop)
    if not stop:
        assert whole == data.decode("utf-8", "replace").rstrip("\ufffd")


@given(text=st.text("ab語", max_size=30), stop=STOPS)
def test_no_more_is_held_back_than_may_yet_be_a_stop_string(text: str, stop: tuple[str, ...]) -> None:
    builder = TextBuilder(Pieces(text, 1), stop)
    so_far, whole = streamed(builder, list(range(len(text))))
    if not builder.stopped and so_far:
        held = whole.removeprefix(so_far[-1])
        assert held == "" or any(string.startswith(held) for string in stop)


REVISED = ("a", "b", "do", " ", "  ", " n", "'t", "n't", " '", " ' ", "'s", "'", " ,", ",", "\n", " not", " .", "m")


@pytest.fixture(scope="module")
def revising() -> Any:
    """A tokenizer that takes the space out of "do n't" as soon as it sees the rest of the word."""
    pytest.importorskip("mlx_lm")
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(REVISED)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return Decoding(PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True))


@pytest.mark.system
@settings(deadline=None, max_examples=150)
@given(
    pieces=st.lists(st.sampled_from(REVISED), max_size=60),
    stop=st.lists(st.sampled_from(["don", "on", "a'", "'b", "do n", "b,", " ", "n't", "\n."]), max_size=2).map(tuple),
)
@example(pieces=["a", " ", "do", " n", "'t"], stop=("don",))
@example(pieces=["do", " n", "'", "'t"], stop=("on",))
@example(pieces=["do", " n", "'t"], stop=())
@example(pieces=["a", " '", " ", "b"], stop=("'b",))
@example(pieces=[" ", " '", " ", "m"], stop=())
def test_words_that_are_revised_are_streamed_once_they_are_settled(
    revising: Any, pieces: list[str], stop: tuple[str, ...]
) -> None:
    assert revising.revises_words
    so_far, whole = streamed(TextBuilder(Detokenizer(revising), stop), [REVISED.index(piece) for piece in pieces])
    never_taken_back(so_far, whole, stop)


@pytest.mark.system
def test_lines_of_a_revising_tokenizer_are_streamed_when_they_end(revising: Any) -> None:
    so_far, _ = streamed(TextBuilder(Detokenizer(revising)), [REVISED.index(piece) for piece in ("a", "do", "\n", "b")])
    assert so_far == ["", "", "ado\n", "ado\n"]


MARKS = ("<think>", "</think>", "<tool_call>")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("<think>a</think>Think twice", ("think",), None),
        ("<think>a</think>I think", ("think",), "<think>a</think>I "),
        ("<think>\n</think>\n\nYes.\n\nNo.", ("\n\n",), "<think>\n</think>\n\nYes."),
        ("a <thin line", ("<",), "a "),
        ("a <thi", ("<",), "a "),
        ("a <tool_call>b <c", ("<",), "a <tool_call>b "),
        ("<think>b</think>baba", ("ba",), "<think>b</think>"),
        ("Call</think><tool_call>x", ("ll>",), None),
        ("<tool_call>aba", ("a",), "<tool_call>"),
        ("<tool_call>", ("<tool_call>",), None),
    ],
)
def test_within_a_mark_a_stop_string_ends_nothing(
    text: str, stop: tuple[str, ...], expected: str | None, size: int
) -> None:
    assert built(text, size, stop, MARKS) == (text if expected is None else expected, expected is not None)


@given(
    text=st.text("<tool>\n a", max_size=30), stop=st.text("<tol>\n a", min_size=1, max_size=4), size=st.integers(1, 6)
)
def test_where_an_answer_with_marks_ends_does_not_depend_on_its_tokens(text: str, stop: str, size: int) -> None:
    marks = ("<tool>", "<to")
    assert built(text, size, (stop,), marks) == built(text, 1, (stop,), marks)
    growing = Pieces(text, size)
    builder = TextBuilder(growing, (stop,), marks)
    told = ""
    for token in range(len(growing)):
        builder.add(token)
        told += builder.take()
    assert builder.finish().startswith(told)
