"""The transformers, each in the words of `operations`: the vectors of all tokens, (b, l, h), as transformers' model of
that family has them in its last hidden state."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from impetus_backends.embedding.architectures import post_norm, pre_norm, turned
from impetus_backends.embedding.devices.operations import PlaceOps
from impetus_backends.embedding.folder.transformer.shapes import JINA, STATIC, TABLES
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.embedding.devices.operations import Inputs, Ops
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

T = TypeVar("T")


def encode(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """The vectors of a batch's tokens."""
    if config.model_type == STATIC:
        return ops.embed(TABLES[0], inputs.ids, config.vocab_size)
    if inputs.packed:
        inputs = replace(inputs, mask=ops.apart(inputs.mask))
    if config.model_type == "deberta-v2":
        if not isinstance(ops, PlaceOps):
            raise BackendUnavailableError("this device runs no DeBERTa; mlx and cpu do")
        made: T = post_norm.deberta(ops, config, inputs)
    else:
        made = _FUNCTIONS.get(config.model_type, post_norm.bert)(ops, config, inputs)
    return made


_FUNCTIONS: dict[str, Callable[[Ops[Any], EncoderConfig, Inputs[Any]], Any]] = {
    "distilbert": post_norm.distilbert,
    "albert": post_norm.albert,
    "mpnet": post_norm.mpnet,
    JINA: post_norm.jina,
    "nomic_bert": turned.turned,
    "gte": turned.turned,
    "modernbert": turned.modernbert,
    "t5": pre_norm.t5,
    "mt5": pre_norm.t5,
    **dict.fromkeys(("qwen3", "qwen2", "mistral", "llama", "eurobert", "gemma3_text"), pre_norm.decoder),
}
"""Of a family that is not named: BERT's."""
