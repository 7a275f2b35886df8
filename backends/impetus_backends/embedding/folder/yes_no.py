"""What the files say of a reranker that is asked: a language model whose yes or no makes the score, as Qwen3-Reranker
and mxbai-rerank-v2.

Two layouts. As Qwen publishes its own, nothing in the files tells it from other language models: it is asked as its
model card has it (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, arXiv:2506.05176). And as sentence-transformers
saves such models from 5.4 on, with LogitScore after the transformer and a chat template for a query and a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import flag, read_json
from impetus_backends.embedding.modules import Logit
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.files import Reader
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

CAUSAL = "ForCausalLM"
"""The end of the architecture's name."""
ASKED = ("qwen3", "qwen2", "llama", "mistral")
"""Families that may be asked; in the first layout the first alone."""
LONGEST = 8192
"""As many tokens as the model card reads: a row of the 40,960 that config.json allows takes gigabytes."""


@dataclass(frozen=True, slots=True)
class Question:
    """How a pair is put to a language model."""

    by_template: bool = False
    """By the chat template beside the weights, or as the model card of Qwen3-Reranker has it."""
    instruction: str | None = None
    """Of the model's own files; none means the model card's, or that the template has one."""
    add_generation_prompt: bool = False


def read_question(
    reader: Reader, folder: Path, transformer: Path, score: Path | None, stated: dict[str, Any]
) -> Question:
    """`score`: the folder of LogitScore; none in the layout without modules."""
    if score is None:
        return Question()
    file = transformer / "sentence_bert_config.json"
    sentence = reader.optional(file)
    message = sentence.get("modality_config", {}).get("message")
    if message != {"method": "forward", "method_output_name": "logits", "format": "flat"}:
        raise ModelError(f"{file}: modality_config does not say that pairs are put as messages, but {message!r:.200}")
    kwargs = sentence.get("processing_kwargs") or {}
    options = kwargs.get("chat_template", {}) if isinstance(kwargs, dict) else None
    if not isinstance(options, dict) or set(kwargs) - {"chat_template"} or set(options) - {"add_generation_prompt"}:
        raise ModelError(f"{file}: processing_kwargs {kwargs!r:.200} are not supported")
    reader.files += sorted([*transformer.glob("*.jinja"), *transformer.glob("additional_chat_templates/*.jinja")])
    default = stated.get("default_prompt_name")
    instruction = (stated.get("prompts") or {}).get(default) if default is not None else None
    return Question(True, instruction or None, flag(file, options, "add_generation_prompt", False))


def read_logit(
    reader: Reader, file: Path, raw: dict[str, Any], encoder: EncoderConfig, score: Path | None, scores: str
) -> Logit:
    """Which tokens' logits make the score, and whose weights are theirs."""
    tied = flag(file, raw, "tie_word_embeddings", False)
    yes: Any
    no: Any
    if score is None:
        yes, no = (_token(file.parent, word) for word in ("yes", "no"))
    else:
        known = ("true_token_id", "false_token_id", "module_input_name")
        found = reader.object(score / "config.json", known=known)
        if found.get("module_input_name", "causal_logits") != "causal_logits":
            raise ModelError(f"{score / 'config.json'}: module_input_name is not supported")
        yes, no = found.get("true_token_id"), found.get("false_token_id")
    for each in (yes, *([] if no is None else [no])):
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < encoder.vocab_size:
            raise ModelError(f"{score or file.parent}: {each!r} is no token of a vocabulary of {encoder.vocab_size}")
    return Logit("embed_tokens.weight" if tied else "lm_head.weight", yes, no, scores)


def _token(folder: Path, word: str) -> int:
    file = folder / "tokenizer.json"
    vocabulary = read_json(file, dict).get("model", {}).get("vocab", {})
    if not isinstance(vocabulary, dict) or word not in vocabulary:
        raise ModelError(f"{file} has no token for {word!r}, which answers of a reranker begin with")
    return int(vocabulary[word])
