"""What a model's files say of its sparse head: how it weighs the tokens of a vocabulary for a text.

Two kinds: SPLADE (arXiv:2107.05720), a masked language model whose logits are pooled, in the layout of
sentence-transformers' SparseEncoder (https://sbert.net/docs/sparse_encoder/usage/custom_models.html), and the lexical
weights of bge-m3 (arXiv:2402.03216), a layer beside the transformer that weighs the text's own tokens (FlagEmbedding).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import flag, positive, read_json
from impetus_backends.embedding.folder.transformer.facts import ACTIVATIONS, read_architecture
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.files import Reader
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

LEXICAL = "sparse_linear"
"""What the layer of bge-m3 is called, and its file."""
NO_HEAD = "has no head for sparse embeddings"
_UNWEIGHED = ("cls_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Splade:
    """Logits of every token of the vocabulary, at every place: what is above zero, pooled, in logarithms."""

    dense: str
    dense_bias: bool
    norm: str
    norm_bias: bool
    activation: str
    decoder: str
    tied: tuple[tuple[str, str], ...]
    """Weights that the model takes from others: the decoder's, and whose they are."""
    decoder_bias: bool = True
    summed: bool = False
    """Whether a token's weights are added up over the text, and not the largest taken."""
    logarithms: int = 1
    """How often `log(1 + x)` is taken."""
    most: int | None = None
    """So many of the largest weights are kept."""


@dataclass(frozen=True, slots=True)
class Lexical:
    """A weight for each of the text's own tokens; of one that comes several times the largest."""

    unweighed: tuple[int, ...]
    """Special tokens, which have none."""


SparseHead = Splade | Lexical


def read_splade(
    reader: Reader, pooling: Path, raw: dict[str, Any], file: Path, encoder: EncoderConfig, most: int | None
) -> Splade:
    """The head of a masked language model whose `config.json` is `raw`, and its pooling's folder."""
    made = read_architecture(file, raw)
    if not made.endswith("ForMaskedLM"):
        raise ModelError(f"{file} is of {made}, and SPLADE's head is that of a …ForMaskedLM")
    stated = reader.object(
        pooling / "config.json",
        known=("pooling_strategy", "activation_function", "embedding_dimension", "word_embedding_dimension"),
    )
    choices = {"pooling_strategy": ("max", "sum"), "activation_function": ("relu", "log1p_relu")}
    for key, allowed in choices.items():
        if stated.get(key, allowed[0]) not in allowed:
            raise ModelError(f"{pooling / 'config.json'}: {key} {stated[key]!r} is not supported")
    width = stated.get("embedding_dimension", stated.get("word_embedding_dimension"))
    if width not in (None, encoder.vocab_size):
        raise ModelError(f"{pooling / 'config.json'} pools {width} tokens of a vocabulary of {encoder.vocab_size}")
    head = _masked_language_head(file, raw, encoder)
    tied = flag(file, raw, "tie_word_embeddings", True)
    table = "embeddings.tok_embeddings" if encoder.model_type == "modernbert" else "embeddings.word_embeddings"
    sources = {"weight": f"{table}.weight", "bias": head.pop("bias", None)}
    return Splade(
        **head,
        tied=tuple((f"{head['decoder']}.{part}", source) for part, source in sources.items() if tied and source),
        summed=stated.get("pooling_strategy") == "sum",
        logarithms=2 if stated.get("activation_function") == "log1p_relu" else 1,
        most=most,
    )


def _masked_language_head(file: Path, raw: dict[str, Any], encoder: EncoderConfig) -> dict[str, Any]:
    """What transformers calls its parts; `bias`: whose bias the decoder takes, where it is not its own."""
    usual = {"dense_bias": True, "norm_bias": True, "activation": encoder.activation}
    match encoder.model_type:
        case "bert":
            transform = "cls.predictions.transform"
            names = {"dense": f"{transform}.dense", "norm": f"{transform}.LayerNorm"}
            return usual | names | {"decoder": "cls.predictions.decoder", "bias": "cls.predictions.bias"}
        case "distilbert":
            return usual | {"dense": "vocab_transform", "norm": "vocab_layer_norm", "decoder": "vocab_projector"}
        case "roberta" | "xlm-roberta":
            names = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "activation": "gelu"}
            return usual | names | {"decoder": "lm_head.decoder", "bias": "lm_head.bias"}
        case "modernbert":
            activation = raw.get("classifier_activation", "gelu")
            if activation not in ACTIVATIONS:
                raise ModelError(f"{file}: classifier_activation {activation!r} is not supported")
            return {
                "dense": "head.dense",
                "dense_bias": flag(file, raw, "classifier_bias", False),
                "norm": "head.norm",
                "norm_bias": "norm" in encoder.biases,
                "activation": ACTIVATIONS[activation],
                "decoder": "decoder",
                "decoder_bias": flag(file, raw, "decoder_bias", True),
            }
    raise ModelError(f"{file}: SPLADE heads of model_type {encoder.model_type!r} are not supported")


def read_most(file: Path, stated: dict[str, Any]) -> int | None:
    """How many weights SparseEncoder keeps, where its file says so."""
    return None if stated.get("max_active_dims") is None else positive(file, stated, "max_active_dims")


def read_lexical(transformer: Path) -> tuple[Lexical | None, str]:
    """The layer that weighs a text's own tokens, if there is one; else why no sparse vectors are made."""
    if (transformer / f"{LEXICAL}.safetensors").is_file():
        return Lexical(_unweighed(transformer)), ""
    if (transformer / f"{LEXICAL}.pt").is_file():
        return None, (
            f"has its head for sparse embeddings in {LEXICAL}.pt alone: a pickle can run code when read, and is never "
            f"loaded here. Convert it once: impetus-worker convert --from-torch {shlex.quote(str(transformer))}"
        )
    return None, NO_HEAD


def _unweighed(folder: Path) -> tuple[int, ...]:
    """The ids of the special tokens that a tokenizer's files name."""
    stated = read_json(folder / "tokenizer_config.json", dict)
    named = [stated.get(kind) for kind in _UNWEIGHED]
    contents = {each.get("content") if isinstance(each, dict) else each for each in named}
    added = read_json(folder / "tokenizer.json", dict).get("added_tokens", [])
    return tuple(sorted(each["id"] for each in added if each.get("content") in contents))
