"""From a request to the tokens that the model reads, or one sentence on why that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from .conversations import Conversations

if TYPE_CHECKING:
    from ...protocol import GenerationWork


_CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer makes of common text. Texts longer than that many a context are looked at twice."""


class Prompts:
    """Reads requests for one model. `tokenizer`: mlx-lm's `TokenizerWrapper`; `context_tokens`: the most it reads;
    `special_tokens`: what they are in messages that do not say."""

    def __init__(
        self,
        tokenizer: Any,
        context_tokens: int,
        *,
        context_known: bool = True,
        special_tokens: str = "control",
    ) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        # In OpenAI's words and digits, by which clients know that they have to send less.
        self._reads = f"this model's maximum context length is {context_tokens} tokens"
        if not context_known:
            self._reads += " (assumed, for it is not known)"
        self._conversations = Conversations(tokenizer)
        self._special_tokens = special_tokens

    def tokens(self, work: GenerationWork) -> list[int]:
        """The prompt's token ids: at least one, and with `max_tokens` no more than the model's context.

        A conversation goes through the model's own chat template, which opens the assistant's turn. Raises
        `RequestError`.
        """
        self._refuse_far_too_long(work)
        if work.messages is not None:
            as_text = (work.special_tokens or self._special_tokens) == "text"
            tokens = self._conversations.tokens(work, special_tokens_as_text=as_text)
        elif work.prompt is not None:
            tokens = _continuation(self._tokenizer, work.prompt)
        else:
            raise RequestError("the request holds neither a prompt nor messages")
        if not tokens:
            raise RequestError("the prompt is empty: the model needs at least one token to go on from")
        if work.max_tokens is not None and work.max_tokens < 1:
            raise RequestError(f"max_tokens is {work.max_tokens}, and must be at least 1")
        if work.max_tokens is not None and len(tokens) + work.max_tokens > self._context_tokens:
            raise RequestError(
                f"{self._reads}, fewer than the prompt's {len(tokens):,} and the {work.max_tokens:,} of max_tokens"
            )
        if len(tokens) >= self._context_tokens:
            raise RequestError(f"{self._reads}, and the prompt's {len(tokens):,} leave no room for an answer")
        return tokens

    def _refuse_far_too_long(self, work: GenerationWork) -> None:
        """Looks at the start of a very long text first: reading all of 10 MB would hold everybody up for long."""
        text = work.prompt or "".join(each["content"] for each in work.messages or ())
        looked_at = _CHARACTERS_PER_TOKEN * self._context_tokens
        if len(text) > looked_at:
            length = len(_continuation(self._tokenizer, text[:looked_at]))
            # Twice the context, so that a word cut in two at the end of the piece cannot decide.
            if length > 2 * self._context_tokens:
                raise RequestError(
                    f"{self._reads}, and the first {looked_at:,} of the prompt's {len(text):,} characters are "
                    f"{length:,} already"
                )


def _continuation(tokenizer: Any, prompt: str) -> list[int]:
    # As mlx-lm does: a prompt that already opens with the start token does not get a second one.
    start = tokenizer.bos_token
    try:
        return list(tokenizer.encode(prompt, add_special_tokens=start is None or not prompt.startswith(start)))
    except Exception as error:
        raise RequestError(f"the tokenizer cannot read the prompt: {error}") from error
