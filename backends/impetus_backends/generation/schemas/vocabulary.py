"""A model's vocabulary as llguidance reads it: what bytes each token stands for, and how a text is cut into tokens.

llguidance reads byte-level tokenizers rightly by itself. With SentencePiece-like ones it cuts what a schema forces into
tokens as if that stood at the beginning of a text, and of the spaces or characters that are then too many or too few it
panics, or lets the model draw what the schema forbids. So these are told to it token by token, and what it forces is
cut into tokens that stand for exactly that.
"""

from __future__ import annotations

from typing import Any

from ..texts.detokenize import token_bytes

_BEFORE = ("\x02", "\n", ":", "a")
"""Texts that a forced one is put behind, so that it does not stand at a beginning."""


def llguidance_tokenizer(tokenizer: Any, size: int, ends: list[int]) -> Any:
    """An `LLTokenizer` of `size` tokens. `tokenizer`: mlx-lm's wrapper; `ends`: the end-of-text tokens.

    Raises what llguidance raises for a tokenizer that it cannot read.
    """
    pieces = token_bytes(tokenizer)
    if pieces is None:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(getattr(tokenizer, "_tokenizer", tokenizer), n_vocab=size, eos_token=ends)
    from llguidance import LLTokenizer

    told: Any = _Vocabulary(tokenizer, pieces, ends[0])
    return LLTokenizer(told, n_vocab=size, eos_token=ends)


class _Vocabulary:
    """llguidance's form of a tokenizer that is not its own. What it calls may not raise: it panics."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Any, pieces: list[bytes], end: int) -> None:
        self.eos_token_id = end
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        # So it marks what is no text.
        self.tokens = [piece or b"\xff[%d]" % token for token, piece in enumerate(pieces)]
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._by_bytes = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}
        self._longest = max(map(len, self._by_bytes), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that stand for this text, or for the beginning of it that tokens can spell."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        wanted = text.encode()
        for before in _BEFORE:
            try:
                tokens = self._tokenizer.encode(before + text, add_special_tokens=False)
            except Exception:  # noqa: BLE001 - there is another way
                break
            for count in range(1, len(tokens)):
                if self._bytes(tokens[:count]).lstrip(b" ") == before.encode():
                    if self._bytes(tokens[count:]) == wanted:
                        return list(tokens[count:])
                    break
        return self._longest_first(wanted)

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(self._pieces[token] for token in tokens)

    def _longest_first(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        at = 0
        while at < len(text):
            lengths = range(min(self._longest, len(text) - at), 0, -1)
            length = next((length for length in lengths if text[at : at + length] in self._by_bytes), 0)
            if not length:
                break
            tokens.append(self._by_bytes[text[at : at + length]])
            at += length
        return tokens
