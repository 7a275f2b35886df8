"""What comes after the transformer: pooling, dense layers and scaling, as `modules.json` and its folders state them.

Layout: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from impetus_backends.embedding.folder.files import flag, positive
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from impetus_backends.embedding.folder.files import Reader

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.linear.Identity": "",
}
AFTER_POOLING = ("Dense", "LayerNorm", "Dropout", "Normalize")
_VECTOR = "sentence_embedding"
_PLACES = ("module_input_name", "module_output_name")


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """How token vectors become one vector: by each mode, one after the other."""

    modes: tuple[str, ...]
    include_prompt: bool = True
    """Whether the tokens of a prompt are pooled with those of the text."""


@dataclass(frozen=True, slots=True)
class Dense:
    """One linear layer over pooled vectors, and what follows it: nothing, where `activation` is empty."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str

    @property
    def name(self) -> str:
        """Of its weights."""
        return f"{self.folder}/linear"


@dataclass(frozen=True, slots=True)
class Linear:
    """As `Dense`, with weights of that name among those of the transformer."""

    name: str
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class Logit:
    """As `Linear`, to one number: by how much a language model's logit of one token is above that of another.

    Its weights are a difference of rows of `table`; `no`: none where the one logit is all.
    """

    table: str
    yes: int
    no: int | None
    activation: str
    name: str = "logit"
    outputs: int = 1
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation of pooled vectors."""

    name: str
    eps: float
    bias: bool


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """The same by a module with a folder of its own, with torch's usual epsilon."""

    folder: str
    eps: float = 1e-5
    bias: bool = True

    @property
    def name(self) -> str:
        """Of its weights."""
        return f"{self.folder}/norm"


@dataclass(frozen=True, slots=True)
class Normalise:
    """Vectors are scaled to length 1."""


Step = Dense | Linear | Logit | Norm | LayerNorm | Normalise


@dataclass(frozen=True, slots=True)
class Modules:
    """The transformer's folder, and where its modules say that they lie."""

    transformer: Path
    pooling: Path | None
    """None of a table of tokens' vectors, which takes their mean."""
    after: tuple[tuple[str, Path], ...]
    splade: bool = False
    """Whether what is pooled is weights of a vocabulary's tokens: nothing comes after that."""
    masked: bool = False
    """Whether the transformer's type says that it is a masked language model, and its own file need not."""


def read_modules(reader: Reader, folder: Path) -> Modules:
    """Raises `ModelError` for a module that is not known, or one where it has no effect that is known."""
    file = folder / "modules.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} has no modules.json, so nothing says how its token vectors are pooled; "
            "save the model with sentence-transformers first, or copy that file and the folders that it names from the "
            "model that this one was made of"
        )
    found = listed_modules(reader, file)
    # Under the second name sentence-transformers saved transformers of SPLADE before 5.4.
    masked = [name for name, _ in found][:1] == ["MLMTransformer"]
    names = ["Transformer" if name == "MLMTransformer" else name for name, _ in found]
    if names == ["Transformer", "SpladePooling"]:
        return Modules(found[0][1], found[1][1], (), splade=True, masked=masked)
    first = next((kinds for kinds in (("Transformer", "Pooling"), ("StaticEmbedding",)) if names[:1] == [kinds[0]]), ())
    count = len(first)
    if not first or tuple(names[:count]) != first or set(names[count:]) - set(AFTER_POOLING):
        raise ModelError(
            f"{file} is {', '.join(names) or 'empty'}; supported is Transformer and Pooling, or StaticEmbedding, and "
            f"then any of {', '.join(AFTER_POOLING)}; or Transformer and SpladePooling alone"
        )
    return Modules(found[0][1], found[1][1] if count == 2 else None, tuple(found[count:]))


def listed_modules(reader: Reader, file: Path) -> list[tuple[str, Path]]:
    """The modules that a `modules.json` lists, and their folders."""
    found: list[tuple[str, Path]] = []
    for module in reader.array(file):
        if not isinstance(module, dict):
            raise ModelError(f"{file} lists {module!r:.80}, and not a module with its type and path")
        kind, path = str(module.get("type")), str(module.get("path", ""))
        if not kind.startswith("sentence_transformers."):
            raise ModelError(f"{file} names {kind}, which is code of the model's own and is never run")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ModelError(f"{file} points outside its folder: {path}")
        found.append((kind.rpartition(".")[2], file.parent / path))
    return found


def read_pooling(reader: Reader, folder: Path, hidden_size: int) -> PoolingConfig:
    file = folder / "config.json"
    known = ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_OLD_POOLINGS)
    raw = reader.object(file, known=known)
    width = raw.get("embedding_dimension", raw.get("word_embedding_dimension"))
    if width != hidden_size:
        raise ModelError(f"{file} pools vectors of {width}, the encoder makes vectors of {hidden_size}")
    mode = raw.get("pooling_mode", [name for key, name in _OLD_POOLINGS.items() if raw.get(key)])
    modes = mode if isinstance(mode, list) else [mode]
    if not modes or not all(each in POOLINGS for each in modes):
        raise ModelError(
            f"{file} pools by {' and '.join(map(str, modes)) or 'nothing'}; supported are {', '.join(POOLINGS)}"
        )
    return PoolingConfig(tuple(modes), flag(file, raw, "include_prompt", True))


def read_steps(reader: Reader, modules: Modules, root: Path, width: int) -> tuple[Step, ...]:
    """What is done to pooled vectors of that width, in order."""
    steps: list[Step] = []
    for name, folder in modules.after:
        file = folder / "config.json"
        if name == "Normalize":
            raw = reader.optional(file, known=_PLACES)
            steps.append(Normalise())
        elif name == "Dropout":  # which is of training alone
            raw = reader.optional(file, known=("dropout",))
        elif name == "LayerNorm":
            raw = reader.object(file, known=("dimension",))
            if raw.get("dimension") != width:
                raise ModelError(f"{file} takes vectors of {raw.get('dimension')}, and vectors of {width} come to it")
            steps.append(LayerNorm(folder.relative_to(root).as_posix()))
        else:
            raw = reader.object(
                file, known=(*_PLACES, "in_features", "out_features", "bias", "activation_function", "use_residual")
            )
            dense = _dense(file, raw, folder.relative_to(root).as_posix(), width)
            width = dense.outputs
            steps.append(dense)
        places = {raw.get(place) for place in _PLACES}
        if places - {_VECTOR, None}:
            raise ModelError(f"{file} works on {places - {_VECTOR, None}}; supported is {_VECTOR} alone")
    return tuple(steps)


def _dense(file: Path, raw: dict[str, object], folder: str, width: int) -> Dense:
    if raw.get("use_residual", False) is not False:
        raise ModelError(f"{file}: use_residual is not supported")
    # What sentence-transformers takes where nothing is stated.
    activation = raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"{file}: activation_function {activation!r} is not supported; supported are {', '.join(_ACTIVATIONS)}"
        )
    inputs = positive(file, raw, "in_features")
    if inputs != width:
        raise ModelError(f"{file} takes vectors of {inputs}, and vectors of {width} come to it")
    return Dense(
        folder,
        inputs,
        positive(file, raw, "out_features"),
        flag(file, raw, "bias", True),
        _ACTIVATIONS[str(activation)],
    )
