"""Small tokenizers of every kind that models have, whose tokens are known to the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = 'def f(self, x):\n    if x:\n        return {"a b": 1}\n\n    # naïve 日本語 🙂\n    return do not, don\'t'
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = list("abdefinorstux(){}[]:,.'#=\"\n1é ") + ["▁" * length for length in range(1, 9)]
WORDS = ["▁a", "▁if", "▁x", "▁return", "def", "▁{", "日", "n't", "▁'", "\n\n", "▁▁▁▁return", "語▁"]


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([CODE] * 3, trainer)
    return tokenizer


def metaspace(scheme: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*SPECIAL, *PIECES, *WORDS]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def sentencepiece(*, strips: bool) -> Any:
    """As Llama 2's (`strips`) and Gemma's: every byte has a token of its own."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*SPECIAL, *BYTES, *PIECES, *WORDS]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return tokenizer


def word_piece() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, *PIECES, "##s", "##ing", "##'", "##t", "##n", "do", "not", "##.", "##é", "ve", "re", "m"]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = dict.fromkeys([*SPECIAL, *PIECES, *WORDS])
    tokenizer = Tokenizer(models.Unigram([(piece, -2.0) for piece in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def with_end_of_word() -> Any:
    from tokenizers import Tokenizer, decoders, models

    pieces = [*SPECIAL, "a", "b</w>", "do</w>", "n", "'t</w>", "\n", ".</w>"]
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def unheard_of() -> Any:
    """Its decoder changes what stands before: "(c)" becomes one character when its last part comes."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {piece: at for at, piece in enumerate([*SPECIAL, "(", "c", ")", "a", "ab", " ", "\n"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("(c)", "©")])
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": byte_level,
    "Metaspace, a space before all": lambda: metaspace("always"),
    "Metaspace, a space before the first": lambda: metaspace("first"),
    "Metaspace, no space before": lambda: metaspace("never"),
    "SentencePiece with bytes": lambda: sentencepiece(strips=True),
    "SentencePiece with bytes, nothing stripped": lambda: sentencepiece(strips=False),
    "WordPiece": word_piece,
    "Unigram": unigram,
    "BPE with ends of words": with_end_of_word,
    "unheard of": unheard_of,
}


def fast(kind: str, *, cleaned_up: bool = False) -> Any:
    """As transformers wraps it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](), eos_token="</s>", clean_up_tokenization_spaces=cleaned_up
    )
