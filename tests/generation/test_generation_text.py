from __future__ import annotations

from typing import Any

import pytest

from impetus_backends.generation.text import TextBuilder

SENTENCE = "the cat sat on the mat, and the dog sat on the cat"


class Pieces:
    """A detokenizer whose token n is the n-th piece of a text."""

    def __init__(self, text: str, size: int) -> None:
        self._pieces = [text[at : at + size] for at in range(0, len(text), size)]
        self.text = ""

    def __len__(self) -> int:
        return len(self._pieces)

    def add_token(self, token: int) -> None:
        self.text += self._pieces[token]

    def finalize(self) -> None:
        pass


def built(text: str, size: int, stop: tuple[str, ...]) -> tuple[str, bool]:
    detokenizer = Pieces(text, size)
    builder = TextBuilder(detokenizer, stop)
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


@pytest.mark.system
@pytest.mark.parametrize("text", ["日本語の文章 with naïve 🙂🚀 עברית", "Zürich, 한국어\nand Łódź", "👩‍👩‍👧 family"])
def test_multi_byte_text_cut_at_any_token_is_a_whole_prefix(loaded: Any, text: str) -> None:
    tokens = loaded.tokenizer.encode(text)
    assert len(tokens) > len(text) / 2
    cut = None
    for count in range(len(tokens) + 1):
        builder = TextBuilder(loaded.tokenizer.detokenizer)
        for token in tokens[:count]:
            builder.add(token)
        cut = builder.finish()
        assert text.startswith(cut)
        assert "\ufffd" not in cut
    assert cut == text


@pytest.mark.system
def test_a_stop_string_of_characters_that_span_several_tokens_is_found(loaded: Any) -> None:
    text = "before 🙂語🚀 after"
    tokens = loaded.tokenizer.encode(text)
    builder = TextBuilder(loaded.tokenizer.detokenizer, ("語🚀",))
    for token in tokens:
        builder.add(token)
    assert builder.finish() == "before 🙂"
