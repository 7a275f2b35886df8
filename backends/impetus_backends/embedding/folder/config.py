"""What an embedding model's files say about how to run it. Nothing is guessed: what is missing or unknown is an error.

Layout: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (modules.json and one folder per module)
around a Hugging Face `config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import Reader, flag, positive
from impetus_backends.embedding.folder.sparse import (
    NO_HEAD,
    SparseHead,
    Splade,
    read_lexical,
    read_most,
    read_splade,
)
from impetus_backends.embedding.folder.static import read_table
from impetus_backends.embedding.folder.transformer.facts import sides
from impetus_backends.embedding.folder.transformer.families import read_shape
from impetus_backends.embedding.modules import (
    Dense,
    Linear,
    Logit,
    Modules,
    Normalise,
    PoolingConfig,
    Step,
    read_modules,
    read_pooling,
    read_steps,
)
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

_SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What changes nothing while it is empty, and is refused while it is not.
_EMPTY = (
    "processing_kwargs",
    "model_args",
    "model_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "config_args",
    "config_kwargs",
    "query_length",
    "document_length",
    "query_expansion",
    "tokenizer_name_or_path",
)


@dataclass(frozen=True, slots=True)
class Task:
    """What sentence-transformers' files say that a transformer is for, and what comes out of it."""

    name: str
    output: str
    output_name: str
    messages: bool = False
    """Whether texts are put as a conversation."""
    unsaid: str = "feature-extraction"
    """What sentence-transformers takes a transformer to be for where its file does not say."""


EMBEDDING = Task("feature-extraction", "token_embeddings", "last_hidden_state")
_SPLADE = Task("fill-mask", "token_embeddings", "logits")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What happens to a text before the tokenizer, and how many tokens of it count."""

    max_tokens: int
    do_lower_case: bool
    prompts: tuple[tuple[str, str], ...]
    default_prompt_name: str | None


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """Everything the files of one embedding model say. `transformer` is the folder of its weights and tokenizer."""

    transformer: Path
    encoder: EncoderConfig
    pooling: PoolingConfig
    text: TextConfig
    steps: tuple[Step, ...] = ()
    """What is done to pooled vectors, in order."""
    truncate: int | None = None
    """So many of the first dimensions are kept, of vectors that were trained for it."""
    root: Path | None = None
    """The folder of the whole model, where it is not that of the transformer."""
    files: tuple[Path, ...] = ()
    """What was read to find all this out."""
    sparse: SparseHead | None = None
    no_sparse: str = NO_HEAD
    """What is to be said where there is no such head."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it makes of a text: a SPLADE model has no dense vectors."""
        if isinstance(self.sparse, Splade):
            return ("sparse",)
        return ("dense", "sparse") if self.sparse else ("dense",)

    @property
    def further(self) -> tuple[object, ...]:
        """What decides its results besides, for who has any of it."""
        return tuple(each for each in (self.sparse, self.encoder.experts) if each)

    @property
    def dimensions(self) -> int:
        """Of the dense vectors that come out; 0 where none do."""
        if "dense" not in self.outputs:
            return 0
        widths = [step.outputs for step in self.steps if isinstance(step, Dense | Linear | Logit)]
        width = widths[-1] if widths else len(self.pooling.modes) * self.encoder.hidden_size
        return min(width, self.truncate or width)

    @property
    def normalised(self) -> bool:
        """Whether every vector comes out with length 1."""
        return bool(self.steps) and isinstance(self.steps[-1], Normalise) and self.truncate is None


def read_config(folder: Path) -> EmbeddingConfig:
    """Reads a model's files; raises `ModelError` where they are missing, contradictory, or ask for the unsupported."""
    reader = Reader()
    with reader.of_known_kinds():
        return _read(reader, folder)


def _read(reader: Reader, folder: Path) -> EmbeddingConfig:
    modules = read_modules(reader, folder)
    refuse_adapters(folder, modules.transformer)
    if modules.splade and modules.pooling is not None:
        return _read_splade(reader, folder, modules, modules.pooling)
    if modules.pooling is None:
        encoder, pooling = read_table(reader, modules.transformer), PoolingConfig(("mean",))
    else:
        file = modules.transformer / "config.json"
        encoder = read_shape(file, reader.object(file))
        pooling = read_pooling(reader, modules.pooling, encoder.hidden_size)
    steps = read_steps(reader, modules, folder, len(pooling.modes) * encoder.hidden_size)
    stated = read_stated(reader, folder, "SentenceTransformer", also=("similarity_fn_name", "truncate_dim"))
    text = read_text(reader, folder, modules.transformer, encoder, stated)
    if modules.pooling is None:  # nothing but the table and its tokenizer counts
        text = replace(text, max_tokens=encoder.longest, do_lower_case=False)
    truncate = stated.get("truncate_dim")
    if truncate is not None:
        truncate = positive(folder / "config_sentence_transformers.json", stated, "truncate_dim")
    lexical, no_sparse = read_lexical(modules.transformer)
    return EmbeddingConfig(
        modules.transformer,
        encoder,
        pooling,
        text,
        steps,
        truncate,
        folder,
        tuple(reader.files),
        sparse=lexical,
        no_sparse=no_sparse,
    )


def _read_splade(reader: Reader, folder: Path, modules: Modules, pooling: Path) -> EmbeddingConfig:
    transformer = modules.transformer
    file = transformer / "config.json"
    raw = reader.object(file)
    encoder = read_shape(file, raw)
    stated = read_stated(reader, folder, "SparseEncoder", also=("similarity_fn_name", "max_active_dims"))
    most = read_most(folder / "config_sentence_transformers.json", stated)
    head = read_splade(reader, pooling, raw, file, encoder, most)
    task = replace(_SPLADE, unsaid=_SPLADE.name) if modules.masked else _SPLADE
    text = read_text(reader, folder, transformer, encoder, stated, task)
    # Of the shares of tokens those of `max` are 1 for each, which is what both of SPLADE's poolings take.
    return EmbeddingConfig(
        transformer, encoder, PoolingConfig(("max",)), text, root=folder, files=tuple(reader.files), sparse=head
    )


def refuse_adapters(*places: Path) -> None:
    for place in places:
        if (place / "adapter_config.json").is_file():
            raise ModelError(f"{place} holds a PEFT adapter (adapter_config.json): merge it into the weights first")


def read_stated(reader: Reader, folder: Path, model_type: str, *, also: tuple[str, ...]) -> dict[str, Any]:
    """What the file of the whole model states, which is of that type; `also`: further keys that it may have."""
    file = folder / "config_sentence_transformers.json"
    stated = reader.optional(file, known=("__version__", "model_type", "prompts", "default_prompt_name", *also))
    if stated.get("model_type", model_type) != model_type:
        raise ModelError(f"{file}: model_type {stated['model_type']!r} is not supported")
    return stated


def read_text(
    reader: Reader,
    folder: Path,
    transformer: Path,
    encoder: EncoderConfig,
    stated: dict[str, Any],
    task: Task = EMBEDDING,
    *,
    whole: bool = True,
) -> TextConfig:
    """What is done to texts, as three files state it. `whole`: whether one of them is sentence-transformers'."""
    sentence = _sentence(reader, transformer, task) if whole else {}
    tokenizer_file = transformer / "tokenizer_config.json"
    tokenizer = reader.optional(tokenizer_file)
    for side, allowed in sides(encoder).items():
        if tokenizer.get(side, "right") not in allowed:
            raise ModelError(f"{tokenizer_file}: {side} {tokenizer[side]!r} is not supported")
    # sentence-transformers' own order; a table of positions bounds it because past its end there is nothing to read.
    # What has none goes on as long as the model's own file says.
    stated_longest = tokenizer.get("model_max_length", tokenizer.get("max_len"))  # the second is the older name
    longest = sentence.get("max_seq_length") or stated_longest or encoder.longest
    if not isinstance(longest, int | float) or longest < 1:
        raise ModelError(f"{transformer}: the most tokens are stated as {longest!r}, not as a positive number")
    if encoder.dynamic and longest > encoder.longest and sentence.get("max_seq_length"):
        raise ModelError(
            f"{transformer}: max_seq_length {longest} is more than the {encoder.longest} tokens up to which angles of "
            f"type dynamic are the same whatever the text: state {encoder.longest} or less"
        )
    bound = longest if sentence.get("max_seq_length") and encoder.endless else encoder.longest
    file = folder / "config_sentence_transformers.json"
    default, named = stated.get("default_prompt_name"), stated.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(prompt, str | None) for prompt in named.values()):
        raise ModelError(f"{file}: prompts are {named!r}, and not texts by name")
    if default is not None and default not in named:
        raise ModelError(f"{file}: there is no prompt named {default!r}")
    return TextConfig(
        max_tokens=int(min(longest, bound)),
        do_lower_case=flag(transformer, sentence, "do_lower_case", False),
        prompts=tuple((name, prompt or "") for name, prompt in named.items()),
        default_prompt_name=default,
    )


def _sentence(reader: Reader, transformer: Path, task: Task) -> dict[str, Any]:
    file = next((transformer / name for name in _SENTENCE_CONFIGS if (transformer / name).is_file()), None)
    known = ("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name")
    # Whether rows are padded changes nothing.
    sentence = {} if file is None else reader.object(file, known=(*known, "unpad_inputs", *_EMPTY))
    file = file or transformer / _SENTENCE_CONFIGS[0]
    for key in _EMPTY:
        if sentence.get(key) not in (None, {}) and not (task.messages and key == "processing_kwargs"):
            raise ModelError(f"{file}: {key} {sentence[key]!r} is not supported")
    stated = {"transformer_task": task.unsaid, "module_output_name": task.output} | sentence
    for key, usual in (("transformer_task", task.name), ("module_output_name", task.output)):
        if stated[key] != usual:
            unsaid = "" if key in sentence else ", which it is where none is stated,"
            raise ModelError(f"{file}: {key} {stated[key]!r}{unsaid} is not supported; {usual!r} is")
    modalities = dict(sentence.get("modality_config", {}))
    if modalities.pop("message", None) and not task.messages:  # sentence-transformers then puts every text as one
        raise ModelError(
            f"{file}: modality_config has texts put as messages by a chat template, which is done for rerankers alone"
        )
    if modalities not in ({}, {"text": {"method": "forward", "method_output_name": task.output_name}}):
        raise ModelError(f"{file}: modality_config {modalities} is not supported")
    return sentence
