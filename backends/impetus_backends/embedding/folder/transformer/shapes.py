"""The shape of one transformer, and what its parts go by."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

JINA = "jina_bert"
ALIBI = "alibi.weight"
"""What its heads' losses by distance go by, which no file holds."""
STATIC = "static"
"""The family of models that are a table of tokens' vectors and nothing else."""
TABLES = ("embedding.weight", "embeddings")
"""What sentence-transformers and model2vec call the table; the first is what it goes by here."""


@dataclass(frozen=True, slots=True)
class Attention:
    """How one layer's tokens look at one another."""

    heads: int
    key_value_heads: int
    """Of which each serves as many heads as fit."""
    head_size: int
    scale: float
    """Of the scores."""
    causal: bool = False
    """A token sees none that come after it."""
    window: int = 0
    """How many tokens to either side are seen; 0 for all."""
    theta: float = 0.0
    """The base of the angles by which queries and keys are turned; 0 where positions are told otherwise."""
    frequencies: tuple[float, ...] = field(default=(), repr=False)
    """By how much each pair of a head's units is turned from one position to the next."""
    dynamic: bool = field(default=False, repr=False)
    """Whether in texts longer than the model was made for that depends on their length."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Wide layers of which each token takes a few."""

    count: int
    chosen: int
    """By each token."""
    every: int
    """Of so many layers the last has them."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The shape of one transformer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    norm_eps: float
    position_rows: int
    """Rows of the table of positions, or the most tokens that it was made for where there is no table."""
    padding_id: int
    activation: str = "gelu"
    uncounted_id: int | None = None
    """The token that positions do not count, in RoBERTa and its like: they start after it, and not at zero."""
    embedding_size: int = 0
    """Of the token table, where it is not the hidden size."""
    token_types: bool = True
    """Whether there is a table of them, in families that may have one."""
    gated: bool = False
    """Whether wide layers are let through by others, in families of either kind."""
    distances: tuple[int, int] = (32, 128)
    """How many kinds of distance scores know, and from where on all are alike, in families that have such."""
    attentions: tuple[Attention, ...] = ()
    """One a layer."""
    biases: tuple[str, ...] = ("attention", "mlp", "norm")
    """Which parts add one."""
    types: int = field(default=0, repr=False)
    """Rows of the table of token types, where tokens say which of two texts they are of; 0 where all are of the first.
    Fingerprints are made of all the others."""
    tasks: bool = field(default=False, repr=False)
    """Whether there is a table of tasks, of which the first is added to every token."""
    layer_names: tuple[str, ...] = field(default=(), repr=False)
    """What its layers' weights go by, one a layer, in families where several layers have the same."""
    experts: Experts | None = field(default=None, repr=False)
    """Where there are such; other wide layers are then not gated."""

    @property
    def longest(self) -> int:
        """The most tokens there is room for."""
        return self.position_rows if self.uncounted_id is None else self.position_rows - self.uncounted_id - 1

    @property
    def knows_distances(self) -> bool:
        """Whether scores depend on how far apart two tokens are."""
        return self.model_type in ("mpnet", "t5", "mt5", "deberta-v2", JINA)

    @property
    def causal(self) -> bool:
        """Whether tokens see none that come after them, as in language models."""
        return any(each.causal for each in self.attentions)

    @property
    def turns(self) -> bool:
        """Whether positions are told by angles, so that padding before a text changes nothing."""
        return any(each.theta for each in self.attentions)

    @property
    def endless(self) -> bool:
        """Whether texts may be longer than it was made for: positions are in no table, but told by angles, or by
        distances that are all alike from some on."""
        return self.turns or self.model_type in ("t5", "mt5", "deberta-v2")

    @property
    def dynamic(self) -> bool:
        """Whether texts longer than `longest` would have other angles, each length its own."""
        return any(each.dynamic for each in self.attentions)

    @property
    def most_heads(self) -> int:
        """Of any layer; 0 where there is none."""
        return max((each.heads for each in self.attentions), default=0)

    @property
    def layer_weights(self) -> int:
        """How many its layers multiply by, biases and norms aside."""
        hidden = self.hidden_size
        attention = sum(2 * (each.heads + each.key_value_heads) * each.head_size * hidden for each in self.attentions)
        return attention + self.layers * (3 if self.turns or self.gated else 2) * hidden * self.intermediate_size


def alibi(heads: int, rows: int) -> np.ndarray:
    """What each head's scores lose by distance, (rows, heads) float32 (arXiv:2108.12409)."""
    losses: np.ndarray = -np.arange(rows)[:, None] * np.array(_slopes(heads))
    return losses.astype(np.float32)


def _slopes(heads: int) -> list[float]:
    power = 1 << (heads.bit_length() - 1)
    series = [2.0 ** (-8 * (index + 1) / power) for index in range(power)]
    return series + _slopes(2 * power)[0::2][: heads - power] if heads > power else series
