"""What a reranker's files say: a transformer that reads a query and a document together, and a head that makes a score;
or a language model that is asked (`yes_no.py`).

Two layouts: a Hugging Face `config.json` alone, and with `modules.json` around it, as CrossEncoder of
sentence-transformers saves from 5.4 on. Scores are what its `predict` returns
(https://sbert.net/docs/package_reference/cross_encoder). Nothing is guessed: what is missing or unknown is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.config import EmbeddingConfig, Task, read_stated, read_text, refuse_adapters
from impetus_backends.embedding.folder.files import Reader, flag, positive
from impetus_backends.embedding.folder.transformer.facts import ACTIVATIONS, read_architecture
from impetus_backends.embedding.folder.transformer.families import read_shape
from impetus_backends.embedding.folder.yes_no import ASKED, CAUSAL, LONGEST, Question, read_logit, read_question
from impetus_backends.embedding.modules import Linear, Norm, PoolingConfig, Step, listed_modules
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

_TASK = Task("sequence-classification", "scores", "logits")
_ASKED = Task("text-generation", "causal_logits", "logits", messages=True)
_SCORES = {"Identity": "", "Sigmoid": "sigmoid"}
_TYPED = {"bert": 2, "electra": 2, "albert": 2, "gte": 1, "roberta": 2, "xlm-roberta": 2, "camembert": 2}
"""Families with a table of token types, and how many rows it has where the file does not say."""
FAMILIES = (
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "albert",
    "mpnet",
    "deberta-v2",
    "modernbert",
    "gte",
    "new",
)


@dataclass(frozen=True, slots=True)
class RerankerConfig(EmbeddingConfig):
    """Everything the files of one reranker say. Its vectors are scores, of one dimension."""

    scores: str = "sigmoid"
    """What is made of a logit; nothing, where it is empty."""
    question: Question | None = None
    """How pairs are put to a language model; none of a model with a head for scores."""

    @property
    def further(self) -> tuple[object, ...]:
        return (self.question,) if self.question else ()

    @property
    def note(self) -> str | None:
        """What a reader of scores must know."""
        if self.question is None or self.question.by_template:
            return None
        return "asked as the model card of Qwen3-Reranker has it, for nothing in its files says that it is a reranker"


def read_reranker(folder: Path) -> RerankerConfig:
    """Reads a model's files; raises `ModelError` where they are missing, contradictory, or ask for the unsupported."""
    reader = Reader()
    with reader.of_known_kinds():
        return _read(reader, folder)


def _read(reader: Reader, folder: Path) -> RerankerConfig:
    transformer, score = _modules(reader, folder)
    refuse_adapters(folder, transformer)
    file = transformer / "config.json"
    raw = reader.object(file)
    if read_architecture(file, raw).endswith(CAUSAL):
        return _read_asked(reader, folder, transformer, raw, score)
    if score is not None:
        raise ModelError(f"{folder / 'modules.json'}: LogitScore is for a …{CAUSAL}, and {file} is of another")
    _check_kind(file, raw)
    encoder = read_shape(file, raw)
    types = positive(file, raw, "type_vocab_size", _TYPED[encoder.model_type]) if encoder.model_type in _TYPED else 1
    encoder = replace(encoder, types=types if types > 1 else 0)
    # CrossEncoder reads its own files where there is a modules.json, and else none of them.
    whole = (folder / "modules.json").is_file()
    also = ("activation_fn", "keep_in_fp32_modules")
    stated = read_stated(reader, folder, "CrossEncoder", also=also) if whole else {}
    if any((stated.get("prompts") or {}).values()):
        raise ModelError(f"{folder / 'config_sentence_transformers.json'}: prompts are not supported for rerankers")
    text = read_text(reader, folder, transformer, encoder, stated, _TASK, whole=whole)
    pooling, head, last = _head(file, raw, encoder)
    scores = _scores(file, raw, stated)
    return RerankerConfig(
        transformer,
        encoder,
        PoolingConfig((pooling,)),
        text,
        steps=(*head, Linear(last, 1, True, scores)),
        root=folder,
        files=tuple(reader.files),
        scores=scores,
    )


def _read_asked(
    reader: Reader, folder: Path, transformer: Path, raw: dict[str, Any], score: Path | None
) -> RerankerConfig:
    """A language model, which is asked whether a document answers a query."""
    file = transformer / "config.json"
    known = ASKED[:1] if score is None else ASKED
    if raw.get("model_type") not in known:
        raise ModelError(
            f"{file}: model_type {raw.get('model_type')!r} of a …{CAUSAL} is not supported for rerankers; supported "
            f"are {', '.join(ASKED)} with LogitScore in modules.json, and {ASKED[0]} without"
        )
    encoder = read_shape(file, raw)
    stated = read_stated(reader, folder, "CrossEncoder", also=("activation_fn", "keep_in_fp32_modules"))
    question = read_question(reader, folder, transformer, score, stated)
    text = read_text(reader, folder, transformer, encoder, stated, _ASKED, whole=score is not None)
    scores = _scores(file, raw, stated)
    logit = read_logit(reader, file, raw, encoder, score, scores)
    return RerankerConfig(
        transformer,
        encoder,
        PoolingConfig(("lasttoken",)),
        replace(text, max_tokens=min(text.max_tokens, LONGEST)),
        steps=(logit,),
        root=folder,
        files=tuple(reader.files),
        scores=scores,
        question=question,
    )


def _modules(reader: Reader, folder: Path) -> tuple[Path, Path | None]:
    """The transformer's folder, and that of what makes scores of a language model's logits, where it is said."""
    file = folder / "modules.json"
    if not file.is_file():
        return folder, None
    modules = listed_modules(reader, file)
    match [name for name, _ in modules]:
        case ["Transformer"]:
            return modules[0][1], None
        case ["Transformer", "LogitScore"]:
            return modules[0][1], modules[1][1]
        case names:
            raise ModelError(
                f"{file} is {', '.join(names)}; supported for rerankers is one Transformer, or one and LogitScore"
            )


def _check_kind(file: Path, raw: dict[str, Any]) -> None:
    made = read_architecture(file, raw)
    if not made.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{file} is of {made}, and a reranker is a …ForSequenceClassification, which has a head that makes a "
            f"score, or a …{CAUSAL}"
        )
    if raw.get("model_type") not in FAMILIES:
        raise ModelError(
            f"{file}: rerankers of model_type {raw.get('model_type')!r} are not supported; supported are "
            f"{', '.join(FAMILIES)}"
        )
    # What transformers takes where nothing is stated is two labels.
    labels = len(raw["id2label"]) if isinstance(raw.get("id2label"), dict) else raw.get("num_labels", 2)
    if labels != 1:
        raise ModelError(f"{file} has {labels} labels: a reranker has one, the score")


def _head(file: Path, raw: dict[str, Any], encoder: EncoderConfig) -> tuple[str, list[Step], str]:
    """Which token is looked at, or all on average; the layers after it; and the name of the one that makes a logit."""
    width = encoder.hidden_size
    match encoder.model_type:
        case "bert" | "gte":
            return "cls", [Linear("pooler.dense", width, True, "tanh")], "classifier"
        case "albert":
            return "cls", [Linear("pooler", width, True, "tanh")], "classifier"
        case "distilbert":
            return "cls", [Linear("pre_classifier", width, True, "relu")], "classifier"
        case "deberta-v2":
            activation = raw.get("pooler_hidden_act", "gelu")
            if activation not in ACTIVATIONS:
                raise ModelError(f"{file}: pooler_hidden_act {activation!r} is not supported")
            return "cls", [Linear("pooler.dense", width, True, ACTIVATIONS[activation])], "classifier"
        case "modernbert":
            return _modernbert_pooling(file, raw), _modernbert_head(file, raw, encoder), "classifier"
        case family:
            activation = "gelu" if family == "electra" else "tanh"
            return "cls", [Linear("classifier.dense", width, True, activation)], "classifier.out_proj"


def _modernbert_pooling(file: Path, raw: dict[str, Any]) -> str:
    pooling = raw.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise ModelError(f"{file}: classifier_pooling {pooling!r} is not supported; supported are cls and mean")
    return str(pooling)


def _modernbert_head(file: Path, raw: dict[str, Any], encoder: EncoderConfig) -> list[Step]:
    activation = raw.get("classifier_activation", "gelu")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{file}: classifier_activation {activation!r} is not supported")
    biased = flag(file, raw, "classifier_bias", False)
    return [
        Linear("head.dense", encoder.hidden_size, biased, ACTIVATIONS[activation]),
        Norm("head.norm", encoder.norm_eps, "norm" in encoder.biases),
    ]


def _scores(file: Path, raw: dict[str, Any], stated: dict[str, Any]) -> str:
    """What CrossEncoder takes for its activation: what the first of these files states, else a sigmoid."""
    own = raw.get("sentence_transformers") or {}
    name = stated.get("activation_fn") or own.get("activation_fn") or raw.get("sbert_ce_default_activation_function")
    if name is None:
        return "sigmoid"
    library, _, kind = str(name).rpartition(".")
    if not library.startswith("torch.") or kind not in _SCORES:
        raise ModelError(f"{file}: scores made by {name!r:.200} are not supported; supported are {', '.join(_SCORES)}")
    return _SCORES[kind]
