"""Text that comes token by token is what the tokenizer itself makes of all tokens, for every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impetus_backends.generation.texts.detokenize import Decoding, Detokenizer
from impetus_backends.generation.texts.text import TextBuilder
from tests.generation.tokenizer_kinds import CODE, KINDS, fast

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=[*KINDS, *(f"{kind}, cleaned up" for kind in ("WordPiece", "Unigram"))])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    kind = request.param.removesuffix(", cleaned up")
    return fast(kind, cleaned_up=kind != request.param)


def looked_at(tokenizer: Any, tokens: list[int], looks: list[bool], stop: tuple[str, ...] = ()) -> str:
    """The whole text, of which nothing that was seen before is taken back."""
    builder = TextBuilder(Detokenizer(Decoding(tokenizer)), stop)
    sent = ""
    for token, looked in zip(tokens, looks, strict=True):
        builder.add(token)
        if looked:
            sent += builder.take()
    whole = builder.finish()
    assert whole.startswith(sent)
    return whole


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "byte" in kind])
def test_what_tokens_stand_for_is_the_text_byte_by_byte(kind: str) -> None:
    tokenizer = fast(kind)
    decoding, text = Decoding(tokenizer), "a na\u00efve \u65e5\u672c \U0001f642 x"
    spelt, parts = b"", 0
    for at, token in enumerate(tokenizer.encode(text, add_special_tokens=False)):
        piece = decoding.piece(token, first=at == 0)
        is_part = "\ufffd" in piece
        spelt += (decoding.raw(token) or b"") if is_part else piece.encode()
        parts += is_part
    assert spelt.decode() == text
    assert parts


def test_where_tokens_stand_for_no_bytes_none_are_made_up() -> None:
    for kind in ("WordPiece", "Unigram", "unheard of"):
        tokenizer = fast(kind)
        assert all(Decoding(tokenizer).raw(token) is None for token in range(len(tokenizer)))


RUNS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 12)), max_size=30)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), runs=RUNS)
def test_the_text_is_the_tokenizers_own_of_all_tokens_whoever_looks_and_whenever(
    tokenizer: Any, data: st.DataObject, runs: list[tuple[int, int]]
) -> None:
    tokens = [token % len(tokenizer) for token, times in runs for _ in range(times)]
    looks = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    expected = tokenizer.decode(tokens).rstrip("\ufffd")
    assert looked_at(tokenizer, tokens, looks) == expected
    assert looked_at(tokenizer, tokens, [True] * len(tokens)) == expected
    assert looked_at(tokenizer, tokens, looks, ("never there, this one",)) == expected


@settings(deadline=None, max_examples=40)
@given(data=st.data(), runs=RUNS)
def test_where_a_stop_string_ends_a_text_does_not_depend_on_who_looks(
    tokenizer: Any, data: st.DataObject, runs: list[tuple[int, int]]
) -> None:
    tokens = [token % len(tokenizer) for token, times in runs for _ in range(times)]
    whole = tokenizer.decode(tokens)
    at = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    stop = (whole[at : at + data.draw(st.integers(1, 6))] or "x", " ")
    unseen = looked_at(tokenizer, tokens, [False] * len(tokens), stop)
    assert looked_at(tokenizer, tokens, [True] * len(tokens), stop) == unseen
    assert not any(each in unseen for each in stop)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"WordPiece", "unheard of"}])
def test_what_is_settled_is_told_while_it_is_made(kind: str) -> None:
    tokenizer = fast(kind)
    detokenizer = Detokenizer(Decoding(tokenizer))
    letter = tokenizer.convert_tokens_to_ids("a")
    for count in range(1, 400):
        detokenizer.add(letter)
        assert detokenizer.settled == len(detokenizer.text) == count


def test_indentation_is_streamed_as_it_is_written() -> None:
    tokenizer = fast("Metaspace, a space before all")
    pieces = ["def", "\n", "▁▁▁▁", "a", "\n", "▁▁▁▁return"]
    tokens = tokenizer.convert_tokens_to_ids(pieces)
    for stop in ((), ("never",)):
        assert looked_at(tokenizer, tokens, [True] * 6, stop) == "def\n    a\n    return"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"BPE with ends of words", "unheard of"}])
def test_the_pieces_of_a_text_are_that_text(kind: str) -> None:
    tokenizer = fast(kind)
    decoding = Decoding(tokenizer)
    tokens = tokenizer.encode("if x: a  not\n    a", add_special_tokens=False) * 2
    pieces = [decoding.piece(token, first=at == 0) for at, token in enumerate(tokens)]
    assert "".join(pieces) == tokenizer.decode(tokens)


def test_a_run_of_bytes_is_told_when_it_is_known_to_be_text() -> None:
    tokenizer = fast("SentencePiece with bytes")
    builder = TextBuilder(Detokenizer(Decoding(tokenizer)))
    told = []
    for piece in ("a", *(f"<0x{byte:02X}>" for byte in "語".encode()), "a"):
        builder.add(tokenizer.convert_tokens_to_ids(piece))
        told.append(builder.take())
    assert told == ["a", "", "", "", "語a"]


def test_what_a_token_costs_does_not_grow_with_the_answer() -> None:
    asked: list[int] = []

    class Counting(Decoding):
        def decode(self, tokens: list[int]) -> str:
            asked.append(len(tokens))
            return super().decode(tokens)

    tokenizer = fast("byte-level BPE")
    builder = TextBuilder(Detokenizer(Counting(tokenizer)), ("never there",))
    for token in tokenizer.encode(CODE * 20):
        builder.add(token)
        builder.take()
    assert max(asked) < 40


@example(text="a" * 3000, stop="a" * 2999 + "b")
@example(text="ab" * 1500, stop="ab" * 1400 + "b")
@settings(deadline=None, max_examples=40)
@given(text=st.text("ab", max_size=300), stop=st.text("ab", min_size=1, max_size=40))
def test_a_long_stop_string_is_looked_for_in_steps_that_do_not_grow_with_it(text: str, stop: str) -> None:
    class Letters:
        text = ""

        def add(self, token: int) -> None:
            self.text += chr(token)

        @property
        def settled(self) -> int:
            return len(self.text)

        def whole(self) -> str:
            return self.text

    builder = TextBuilder(Letters(), (stop,))
    sent = ""
    for character in text:
        builder.add(ord(character))
        if builder.stopped:
            break
        sent += builder.take()
        held = len(builder._growing.text) - len(sent)
        assert held == 0 or stop.startswith(builder._growing.text[-held:])
        if len(text) < 400:
            so_far = builder._growing.text
            assert held == max(at for at in range(len(stop)) if at <= len(so_far) and so_far.endswith(stop[:at]))
    assert builder.finish() == text.partition(stop)[0]
