"""A model's chat template, and whether it says what it is given.

Templates are programs, and some leave out without a word what comes in a form that they do not expect: that of LLaVA
takes the content of a message only as a list of parts, and of a plain text it makes nothing. So texts that nobody else
would write are sent through a template before it is used, and looked for in what comes out.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

from ...errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBES = ("Zkqv-17 quuxly", "Vbnm-29 fnordly", "Wxyj-83 plughly")
# A conversation around the role that is tried. Templates insist on turns that alternate, and on a user at the end.
_AROUND: dict[str, tuple[str, ...]] = {
    "user": ("user",),
    "assistant": ("user", "assistant", "user"),
    "tool": ("user", "assistant", "tool"),
}
_TEMPLATE_S = 2
"""Of computing: common templates take milliseconds for long conversations, and all that decode wait meanwhile."""
_ENDLESS = f"the model's chat template did not come to an end within {_TEMPLATE_S} s of computing"


class Conversations:
    """Turns messages into the tokens of a prompt. `tokenizer`: mlx-lm's `TokenizerWrapper`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._parts = False
        """Whether contents go into the template as lists of parts, each a text."""
        self._said: dict[str, bool] = {}
        """By role: whether the template says what such a message holds."""
        self._endless = False
        """Whether the template did not come to an end with the shortest of conversations."""
        if tokenizer.has_chat_template and not self._says("user"):
            self._parts = True
            if not self._says("user"):
                self._parts = False

    def tokens(self, messages: tuple[tuple[str, str], ...], *, special_tokens_as_text: bool = False) -> list[int]:
        """The conversation as the template writes it, with the assistant's turn opened. Raises `RequestError`.

        `special_tokens_as_text`: a token of the vocabulary that is no piece of text (an added one, special or not,
        white space aside) comes from the template alone. Where a message spells one, that is read as other text is.
        """
        if not self._tokenizer.has_chat_template:
            raise RequestError("this model has no chat template and takes no messages: send `prompt` instead")
        if self._endless:
            raise RequestError(_ENDLESS)
        try:
            if special_tokens_as_text:
                tokens = self._tokens_of_text_alone(messages)
            else:
                tokens = list(self._tokenizer.encode(self._written(messages), add_special_tokens=False))
        except _EndlessError:
            raise RequestError(_ENDLESS) from None
        except RequestError:
            raise
        except Exception as error:  # templates are programs, and refuse by raising what they like
            raise RequestError(f"the model's chat template refused the messages: {error}") from error
        for role in dict.fromkeys(role for role, content in messages if content):
            if role not in self._said:
                self._said[role] = self._says(role)
            if not self._said[role]:
                raise RequestError(
                    f"this model's chat template leaves out what messages of the role {role!r:.40} say: send `prompt` "
                    "instead, or give their text another role"
                )
        return tokens

    def _written(self, messages: tuple[tuple[str, str], ...]) -> str:
        with _time_limit():
            return str(
                self._tokenizer.apply_chat_template(self._formed(messages), add_generation_prompt=True, tokenize=False)
            )

    def _tokens_of_text_alone(self, messages: tuple[tuple[str, str], ...]) -> list[int]:
        tokenizer = self._tokenizer._tokenizer  # transformers' own, beneath mlx-lm's
        if self._tokenizer._chat_template is not None:
            raise RequestError("special_tokens: this model's conversations are not written by a template of its own")
        if tokenizer.chat_control_tokens is None:
            added = (each.content for each in tokenizer.added_tokens_decoder.values())
            tokenizer.chat_control_tokens = [each for each in added if each.strip()]
        with _time_limit():
            return list(
                self._tokenizer.apply_chat_template(
                    self._formed(messages), add_generation_prompt=True, sanitize_control_tokens=True
                )
            )

    def _formed(self, messages: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
        def form(content: str) -> Any:
            return [{"type": "text", "text": content}] if self._parts else content

        return [{"role": role, "content": form(content)} for role, content in messages]

    def _says(self, role: str) -> bool:
        """Whether a message of this role is to be found in what the template makes of it.

        A template that refuses the trial says why when it refuses the messages themselves; if it takes those, it is
        the trial that it did not like.
        """
        around = _AROUND.get(role, (role, "user"))
        trial = tuple(zip(around, _PROBES, strict=False))
        probe = next(content for at, content in trial if at == role)
        try:
            made = self._written(trial)
        except _EndlessError:
            self._endless = True
            return True
        except Exception:  # noqa: BLE001 - templates raise what they like
            return True
        return probe in made


class _EndlessError(Exception):
    """The template has had its time."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Interrupts what computes for longer, wherever it is: only a process's first thread can do that to itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def interrupt(*_: object) -> None:
        if not over:
            raise _EndlessError

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, _TEMPLATE_S, 0.1)  # and again: what a destructor raises is lost
    try:
        try:
            yield
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
